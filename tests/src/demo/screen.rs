//! What the demo looks like: on a terminal a table that is redrawn in place, elsewhere plain lines.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_userspace::api::dto::BackendDetail;

use crate::Backend;

/// Between two tables where nothing can be redrawn.
const PLAIN_PAUSE: Duration = Duration::from_secs(1);

/// Where the story is told.
pub struct Screen {
    /// The story goes to stderr, because stdout is for the result.
    json: bool,
    terminal: bool,
    /// Lines of the table that the next one replaces.
    drawn: usize,
    last_plain: Option<Instant>,
}

/// One backend in the live table.
pub struct Row {
    name: String,
    address: String,
    health: String,
    note: String,
    slots: u32,
    flows: u64,
    packets: u64,
    served: u64,
}

impl Row {
    pub fn new(backend: &Backend, shown: &[BackendDetail]) -> Result<Self> {
        let detail = shown
            .iter()
            .find(|detail| detail.address == backend.v4())
            .with_context(|| format!("the daemon does not list {}", backend.name()))?;
        Ok(Self {
            name: backend.name().to_owned(),
            address: detail.address.to_string(),
            health: detail.health.to_string(),
            note: detail.not_eligible.clone().unwrap_or_default(),
            slots: detail.slots,
            flows: detail.flows,
            packets: detail.packets,
            served: backend.counters().served.load(Ordering::Relaxed),
        })
    }
}

impl Screen {
    pub fn new(json: bool) -> Self {
        let terminal = if json {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        Self {
            json,
            terminal,
            drawn: 0,
            last_plain: None,
        }
    }

    pub fn title(&mut self, text: &str) {
        let text = if self.terminal {
            format!("\n\x1b[1m{text}\x1b[0m")
        } else {
            format!("\n{text}")
        };
        self.line(&text);
    }

    pub fn say(&mut self, text: &str) {
        self.line(text);
    }

    /// Text of a file, set off from what is said.
    pub fn quote(&mut self, text: &str) {
        let quoted: Vec<String> = text
            .lines()
            .map(|line| format!("    {line}").trim_end().to_owned())
            .collect();
        self.line(&quoted.join("\n"));
    }

    /// The live table. `last`: it stays.
    pub fn draw(&mut self, rows: &[Row], done: usize, failed: usize, last: bool) {
        if !self.terminal {
            let due = self
                .last_plain
                .is_none_or(|last| last.elapsed() >= PLAIN_PAUSE);
            if !due && !last {
                return;
            }
            self.last_plain = Some(Instant::now());
        }
        let up = if self.terminal && self.drawn > 0 {
            format!("\x1b[{}A\x1b[J", self.drawn)
        } else {
            String::new()
        };
        let table = self.table(rows, done, failed);
        let lines = table.lines().count();
        let gap = if self.terminal { "" } else { "\n" };
        self.line(&format!("{up}{table}{gap}"));
        self.drawn = if last { 0 } else { lines };
        if last {
            self.last_plain = None;
        }
    }

    fn table(&self, rows: &[Row], done: usize, failed: usize) -> String {
        let slots: u32 = rows.iter().map(|row| row.slots).sum();
        let mut text = format!(
            "  {:<10}{:<12}{:<9}{:>7}{:>8}{:>9}{:>10}{:>9}\n",
            "BACKEND", "ADDRESS", "HEALTH", "SLOTS", "SHARE", "FLOWS", "PACKETS", "SERVED"
        );
        for row in rows {
            let share = f64::from(row.slots) * 100.0 / f64::from(slots.max(1));
            let (colour, reset) = match (self.terminal, row.slots) {
                (false, _) => ("", ""),
                (true, 0) => ("\x1b[31m", "\x1b[0m"),
                (true, _) => ("\x1b[32m", "\x1b[0m"),
            };
            text.push_str(&format!(
                "  {:<10}{:<12}{colour}{:<9}{reset}{:>7}{share:>6.1} %{:>9}{:>10}{:>9}  {}\n",
                row.name,
                row.address,
                row.health,
                row.slots,
                row.flows,
                row.packets,
                row.served,
                row.note
            ));
        }
        text.push_str(&format!("  {done} connections, {failed} failed"));
        text.lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The result, for programs.
    pub fn json(&self, object: &serde_json::Value) {
        if self.json {
            println!("{object}");
        }
    }

    /// Nobody may be listening any more (`demo | head`); the result is in the exit code all the same.
    fn line(&self, text: &str) {
        let _ = if self.json {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}").and_then(|()| std::io::stdout().flush())
        };
    }
}
