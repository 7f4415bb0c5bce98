//! How answers look on a terminal: tables, colours, units.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Table, Width,
    presets::NOTHING,
};
use serde::Serialize;

use super::Failure;
use crate::api::dto::Changed;

/// Narrower than this, wrapped sentences are a column of single words.
const WRAPPED_WIDTH: u16 = 24;

/// Whether colours may be used.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub colour: bool,
}

impl Style {
    /// Colours on a terminal, unless NO_COLOR (no-color.org) says otherwise.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: stream.is_terminal() && !unwanted,
        }
    }

    pub fn stdout() -> Self {
        Self::of(&io::stdout())
    }

    pub fn cell(self, text: impl ToString, tone: Tone) -> Cell {
        let cell = Cell::new(text);
        match tone.colour() {
            Some(colour) if self.colour => cell.fg(colour),
            _ => cell,
        }
    }

    /// Text outside tables.
    pub fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Good => 32,
            Tone::Doubtful => 33,
            Tone::Bad => 31,
            Tone::Plain => return text.to_owned(),
        };
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A table without borders; what stands in `numbers` (column indexes) is aligned right. Only the last column
    /// may wrap: an address or a number torn in two cannot be read, nor copied.
    pub fn table(self, header: &[&str], numbers: &[usize], rows: Vec<Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        // Wrapped cells are for eyes; a pipe gets whole lines.
        table.set_content_arrangement(if table.is_tty() {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        let header: Vec<Cell> = header
            .iter()
            .map(|name| {
                let cell = Cell::new(name);
                if self.colour {
                    cell.add_attribute(Attribute::Bold)
                } else {
                    cell
                }
            })
            .collect();
        table.set_header(Row::from(header));
        for row in rows {
            table.add_row(Row::from(row));
        }
        // The last column may shrink to this, but is not blown up to it.
        let widths = table.column_max_content_widths();
        let last = widths.len().saturating_sub(1);
        let wraps = widths.last().is_some_and(|&width| width > WRAPPED_WIDTH);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            column.set_constraint(if index == last && wraps {
                ColumnConstraint::LowerBoundary(Width::Fixed(WRAPPED_WIDTH))
            } else {
                ColumnConstraint::ContentWidth
            });
            if numbers.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.trim_fmt() + "\n"
    }
}

/// What a value means to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Doubtful,
    Bad,
}

impl Tone {
    fn colour(self) -> Option<Color> {
        match self {
            Self::Plain => None,
            Self::Good => Some(Color::Green),
            Self::Doubtful => Some(Color::Yellow),
            Self::Bad => Some(Color::Red),
        }
    }
}

/// Writes to stdout; that the reader has gone (`sluice status | head -1`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to stdout"))?
        }
        _ => Ok(()),
    }
}

pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).context("the answer has no JSON form")?;
    print(&(text + "\n"))
}

/// What a changing verb did.
pub fn print_changed(changed: &Changed, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(changed);
    }
    let mut text = changed.message.clone();
    if changed.slots_moved > 0 {
        text.push_str(&format!(
            "\n{} slots moved, {} of them in excess",
            count(changed.slots_moved),
            count(changed.slots_moved_in_excess)
        ));
    }
    print(&(text + "\n"))
}

/// `1234567` → `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `987654321` → `941.9 MiB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    // The rounding of f64 is far below the one decimal shown.
    let mut value = number as f64;
    let mut unit = "B";
    for next in UNITS {
        // 1023.95 would be shown as 1024.0.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// `11531` → `3h 12m`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|&(value, _)| value > 0).unwrap_or(3);
    parts
        .iter()
        .skip(first)
        .take(2)
        .enumerate()
        .filter(|&(index, &(value, _))| index == 0 || value > 0)
        .map(|(_, (value, unit))| format!("{value}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Seconds since the Unix epoch → `2025-10-09 08:53:20 UTC`.
pub fn moment(seconds: u64) -> String {
    // humantime panics after the year 9999.
    let at = UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// How good `eligible` of `backends` is.
pub fn tone_of_eligible(eligible: u32, backends: u32) -> Tone {
    match eligible {
        0 => Tone::Bad,
        _ if eligible < backends => Tone::Doubtful,
        _ => Tone::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0, 999, 1_000, 999_999, 1_234_567, u64::MAX].map(count);
        let expected = [
            "0",
            "999",
            "1,000",
            "999,999",
            "1,234,567",
            "18,446,744,073,709,551,615",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn bytes_have_units() {
        let shown = [0, 1023, 1024, 1_048_575, 987_654_321, u64::MAX].map(bytes);
        let expected = [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.0 MiB",
            "941.9 MiB",
            "16.0 EiB",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn durations_show_their_two_largest_units() {
        let shown = [0, 59, 60, 75, 3_600, 11_531, 86_400 + 3_600, 86_461].map(duration);
        let expected = ["0s", "59s", "1m", "1m 15s", "1h", "3h 12m", "1d 1h", "1d"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn moments_are_readable() {
        assert_eq!(moment(1_760_000_000), "2025-10-09 08:53:20 UTC");
        assert!(moment(u64::MAX).starts_with("9999-12-31"));
    }

    #[test]
    fn colours_only_where_allowed() {
        for colour in [false, true] {
            let style = Style { colour };
            let rows = vec![vec![style.cell("down", Tone::Bad), Cell::new("12")]];
            let table = style.table(&["HEALTH", "N"], &[1], rows);
            assert_eq!(table.contains('\x1b'), colour, "{table:?}");
            assert_eq!(style.paint("x", Tone::Good).contains('\x1b'), colour);
        }
    }

    #[test]
    fn numbers_stand_right() {
        let rows = vec![
            vec![Cell::new("web"), Cell::new("1,234")],
            vec![Cell::new("dns6"), Cell::new("5")],
        ];
        let table = Style { colour: false }.table(&["NAME", "PACKETS"], &[1], rows);
        assert_eq!(table, "NAME  PACKETS\nweb     1,234\ndns6        5\n");
    }
}
