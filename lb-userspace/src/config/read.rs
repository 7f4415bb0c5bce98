//! Takes typed values out of a raw tree, and words what does not fit.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Problems;
use super::raw::{Entry, Node, Value};

/// A kind of table: how it is spelled, and its keys.
pub(super) struct Shape {
    /// `[service.health]`; how messages call the place.
    pub header: &'static str,
    pub keys: &'static [&'static str],
}

/// Every table there is; also finds the table a misplaced key belongs to.
pub(super) static ROOT: Shape = Shape {
    header: "the top level",
    keys: &["node", "capacity", "api", "metrics", "service"],
};
pub(super) static NODE: Shape = Shape {
    header: "[node]",
    keys: &[
        "interfaces",
        "xdp_mode",
        "source",
        "hash_seed",
        "pin",
        "state",
        "icmp_echo",
    ],
};
pub(super) static CAPACITY: Shape = Shape {
    header: "[capacity]",
    keys: &["services", "backends", "slots", "flows"],
};
pub(super) static API: Shape = Shape {
    header: "[api]",
    keys: &["socket"],
};
pub(super) static METRICS: Shape = Shape {
    header: "[metrics]",
    keys: &["listen"],
};
pub(super) static SERVICE: Shape = Shape {
    header: "[[service]]",
    keys: &[
        "name",
        "vip",
        "protocol",
        "forward",
        "affinity",
        "tracking",
        "flow_idle",
        "grace",
        "hold_down",
        "linger",
        "table_size",
        "on_empty",
        "health",
        "backend",
    ],
};
pub(super) static HEALTH: Shape = Shape {
    header: "[service.health]",
    keys: &[
        "kind", "path", "host", "expect", "port", "interval", "timeout", "rise", "fall",
    ],
};
pub(super) static BACKEND: Shape = Shape {
    header: "[[service.backend]]",
    keys: &["address", "weight", "replaces"],
};
static SHAPES: [&Shape; 8] = [
    &ROOT, &NODE, &CAPACITY, &API, &METRICS, &SERVICE, &HEALTH, &BACKEND,
];

/// A table whose keys are known.
pub(super) struct Section<'a> {
    /// `service "web".health`; empty at the top level.
    pub path: String,
    pub at: Option<usize>,
    /// `None` when it is no table at all, which has been noted.
    entries: Option<&'a [Entry<'a>]>,
}

impl<'a> Section<'a> {
    /// Opens a table and notes keys it should not have. What is no table is noted, and counts as an empty one.
    pub(super) fn open(
        node: &'a Node<'a>,
        path: String,
        shape: &'static Shape,
        problems: &mut Problems,
    ) -> Self {
        let entries = match &node.value {
            Value::Table(entries) => Some(entries.as_slice()),
            _ => {
                let what = format!(
                    "{} where a table is needed; write {}",
                    node.type_name(),
                    shape.header
                );
                problems.add(node.at, path.clone(), None, what);
                None
            }
        };
        let section = Self {
            path,
            at: node.at,
            entries,
        };
        for entry in entries.unwrap_or_default() {
            if !shape.keys.contains(&&*entry.key) {
                problems.add(
                    entry.at,
                    section.key(&entry.key),
                    None,
                    unknown_key(&entry.key, shape),
                );
            }
        }
        section
    }

    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn field(&self, key: &str) -> Option<Field<'a>> {
        let entry = self.entries?.iter().find(|entry| entry.key == key)?;
        Some(Field {
            path: self.key(key),
            node: &entry.node,
        })
    }

    /// A field that must be there.
    pub(super) fn required(
        &self,
        key: &str,
        mend: &str,
        problems: &mut Problems,
    ) -> Option<Field<'a>> {
        let field = self.field(key);
        if field.is_none() && self.entries.is_some() {
            problems.add(self.at, self.key(key), None, format!("missing; {mend}"));
        }
        field
    }
}

/// One value and the path to it.
pub(super) struct Field<'a> {
    pub path: String,
    pub node: &'a Node<'a>,
}

impl<'a> Field<'a> {
    /// Notes a problem with the value.
    pub(super) fn wrong(&self, problems: &mut Problems, what: impl Into<String>) {
        problems.add(
            self.node.at,
            self.path.clone(),
            Some(shortened(&self.node.written)),
            what,
        );
    }

    pub(super) fn string(&self, example: &str, problems: &mut Problems) -> Option<&'a str> {
        match &self.node.value {
            Value::String(string) => Some(string),
            _ => {
                let name = self.node.type_name();
                self.wrong(
                    problems,
                    format!("{name} where a string is needed; write {example}"),
                );
                None
            }
        }
    }

    pub(super) fn integer(
        &self,
        range: RangeInclusive<u32>,
        problems: &mut Problems,
    ) -> Option<u32> {
        let (low, high) = (range.start(), range.end());
        match self.node.value {
            Value::Integer(n) => match u32::try_from(n).ok().filter(|n| range.contains(n)) {
                Some(n) => return Some(n),
                None => self.wrong(
                    problems,
                    format!("out of range; write a number from {low} to {high}"),
                ),
            },
            _ => {
                let name = self.node.type_name();
                let quotes = match self.node.value {
                    Value::String(_) => " without quotes",
                    _ => "",
                };
                self.wrong(
                    problems,
                    format!("{name} where an integer is needed; write a number from {low} to {high}{quotes}"),
                );
            }
        }
        None
    }

    /// The items of an array, each with its own path; `None` (noted) if it is none.
    pub(super) fn items(&self, example: &str, problems: &mut Problems) -> Option<Vec<Field<'a>>> {
        match &self.node.value {
            Value::Array(items) => Some(
                (1..)
                    .zip(items)
                    .map(|(n, node)| Field {
                        path: format!("{} #{n}", self.path),
                        node,
                    })
                    .collect(),
            ),
            _ => {
                let name = self.node.type_name();
                let what = format!("{name} where a list is needed; write {example}");
                match self.node.value {
                    // As it was written, a table is only its header.
                    Value::Table(_) => problems.add(self.node.at, self.path.clone(), None, what),
                    _ => self.wrong(problems, what),
                }
                None
            }
        }
    }

    /// One of a few words. `later` are words that a coming version will know.
    pub(super) fn choice<T: Copy>(
        &self,
        known: &[(&str, T)],
        later: &[&str],
        problems: &mut Problems,
    ) -> Option<T> {
        let words: Vec<String> = known.iter().map(|(word, _)| format!("{word:?}")).collect();
        let words = alternatives(&words);
        let string = self.string(&words, problems)?;
        if let Some((_, choice)) = known.iter().find(|(word, _)| *word == string) {
            return Some(*choice);
        }
        if later.contains(&string) {
            self.wrong(
                problems,
                format!("not supported by this version; use {words}"),
            );
        } else {
            let candidates: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            let guess = nearest(string, &candidates)
                .map_or_else(String::new, |word| format!("did you mean {word:?}? "));
            self.wrong(
                problems,
                format!("not a known value; {guess}known values are {words}"),
            );
        }
        None
    }

    pub(super) fn duration(
        &self,
        range: RangeInclusive<Duration>,
        problems: &mut Problems,
    ) -> Option<Duration> {
        let (low, high) = (
            humantime::format_duration(*range.start()),
            humantime::format_duration(*range.end()),
        );
        let string = self.string(
            "a duration with its unit, like \"2s\" or \"500ms\"",
            problems,
        )?;
        match humantime::parse_duration(string) {
            Ok(duration) if range.contains(&duration) => return Some(duration),
            Ok(_) => self.wrong(
                problems,
                format!("out of range; write a duration from \"{low}\" to \"{high}\""),
            ),
            Err(_) => self.wrong(
                problems,
                "not a duration; write a number and its unit, like \"2s\" or \"500ms\"",
            ),
        }
        None
    }

    pub(super) fn absolute_path(&self, example: &str, problems: &mut Problems) -> Option<PathBuf> {
        let string = self.string(example, problems)?;
        if !string.starts_with('/') || string.contains('\0') {
            self.wrong(
                problems,
                format!("not an absolute path; write one, like {example}"),
            );
            return None;
        }
        Some(PathBuf::from(string))
    }
}

/// `"a", "b" or "c"`
pub(super) fn alternatives(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn unknown_key(key: &str, shape: &Shape) -> String {
    let known = shape.keys.join(", ");
    if let Some(guess) = nearest(key, shape.keys) {
        return format!("unknown key; did you mean `{guess}`? Known keys are {known}");
    }
    // In TOML, what follows a sub-table's header belongs to the sub-table: an easy slip.
    match SHAPES.iter().find(|other| other.keys.contains(&key)) {
        Some(other) => format!(
            "unknown key of {}; it belongs to {}, move it there. Known keys here are {known}",
            shape.header, other.header
        ),
        None => format!("unknown key; remove it. Known keys are {known}"),
    }
}

/// The candidate that differs least, if it is near enough to be a slip of the hand.
fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    candidates
        .iter()
        .map(|candidate| (distance(&word.to_lowercase(), candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A value as it was written, fit for one line of a message.
fn shortened(written: &str) -> String {
    const MOST: usize = 80;
    let line = written.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented() {
        let manual = include_str!("../../../docs/config.md");
        for shape in SHAPES
            .into_iter()
            .filter(|shape| shape.header.starts_with('['))
        {
            let heading = format!("## `{}`\n", shape.header);
            let (_, section) = manual.split_once(&heading).expect(shape.header);
            let section = section.split("\n## ").next().unwrap_or(section);
            // Tables have a section of their own.
            for key in shape
                .keys
                .iter()
                .filter(|key| !["health", "backend"].contains(key))
            {
                assert!(
                    section.contains(&format!("\n| `{key}` |")),
                    "docs/config.md does not describe {key} of {}",
                    shape.header
                );
            }
        }
    }

    #[test]
    fn slips_of_the_hand_find_their_key() {
        assert_eq!(nearest("intervall", HEALTH.keys), Some("interval"));
        assert_eq!(nearest("Interface", NODE.keys), Some("interfaces"));
        assert_eq!(nearest("backends", SERVICE.keys), Some("backend"));
        assert_eq!(nearest("colour", SERVICE.keys), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("fall", "fall"), 0);
    }

    #[test]
    fn long_and_broken_values_fit_one_line() {
        assert_eq!(shortened("[\n  1,\n  2 ]"), "[ 1, 2 ]");
        assert_eq!(shortened(&"é".repeat(81)), format!("{}…", "é".repeat(80)));
    }
}
