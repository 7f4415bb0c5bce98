//! Outcomes for people: a table and a sentence for each scenario.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::outcome::Outcome;
use crate::scenario::Scenario;

const HEADERS: [&str; 8] = [
    "design",
    "connections",
    "broken",
    "why",
    "hung",
    "entries: mean",
    "peak",
    "bytes: peak",
];

pub fn text(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(HEADERS);
    table.force_no_tty();
    for outcome in outcomes {
        let causes: Vec<String> = outcome
            .causes
            .iter()
            .map(|(cause, count)| format!("{cause} {}", number(*count)))
            .collect();
        table.add_row([
            outcome.design.to_owned(),
            number(outcome.connections),
            number(outcome.broken),
            causes.join(", "),
            number(outcome.abandoned),
            number(outcome.mean_entries.round() as u64),
            number(outcome.peak_entries),
            number(outcome.peak_bytes),
        ]);
    }
    for column in [1, 2, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}\n", scenario.name, scenario.title);
    let _ = writeln!(text, "{}\n", table.trim_fmt());
    let _ = writeln!(text, "{}", scenario.shows.trim());
    text
}

/// With commas between thousands.
fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        let written = [0, 999, 1_000, 1_234_567].map(number);
        assert_eq!(written, ["0", "999", "1,000", "1,234,567"]);
    }
}
