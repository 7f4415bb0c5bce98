//! What is wrong with a configuration: where, what, and the way out.

use std::fmt;

/// Why a configuration was refused. Its `Display` is what an operator reads: one line per problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The file could not be read.
    Read { file: String, reason: String },
    /// The text is not TOML.
    Syntax {
        place: Place,
        /// The line with a caret under the offending place, and what was expected there.
        excerpt: String,
    },
    /// The text is TOML, but not a configuration: everything found, in the order of the file. Never empty.
    Invalid(Vec<Problem>),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `None` for what did not come from a file.
    pub place: Option<Place>,
    /// `service "web".health.interval`
    pub key: String,
    /// The value as it was written, where there is one to blame.
    pub value: Option<String>,
    /// What is wrong with it, and what to write instead.
    pub what: String,
}

/// A position in a file; line and column count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: usize,
    pub column: usize,
}

impl Place {
    fn of(offset: usize, text: &str, file: &str) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl ConfigError {
    pub(super) fn syntax(error: &toml::de::Error, text: &str, file: &str) -> Self {
        let printed = error.to_string();
        // The first line says "TOML parse error at line 2, column 5": the place says so already.
        let excerpt = printed
            .split_once('\n')
            .map_or(printed.as_str(), |(_, rest)| rest);
        Self::Syntax {
            place: Place::of(error.span().map_or(0, |span| span.start), text, file),
            excerpt: excerpt.trim_end().to_owned(),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, reason } => {
                write!(
                    f,
                    "{file}: cannot be read: {reason}; name the file with --config FILE"
                )
            }
            Self::Syntax { place, excerpt } => write!(f, "{place}: not valid TOML\n{excerpt}"),
            Self::Invalid(problems) => {
                for (n, problem) in problems.iter().enumerate() {
                    let newline = if n > 0 { "\n" } else { "" };
                    write!(f, "{newline}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Collects problems while a configuration is resolved.
pub(super) struct Problems<'a> {
    /// Name and text of the file, if there is one.
    source: Option<(&'a str, &'a str)>,
    found: Vec<(Option<usize>, Problem)>,
}

impl<'a> Problems<'a> {
    pub(super) fn in_file(file: &'a str, text: &'a str) -> Self {
        Self {
            source: Some((file, text)),
            found: Vec::new(),
        }
    }

    pub(super) fn without_file() -> Self {
        Self {
            source: None,
            found: Vec::new(),
        }
    }

    /// Notes a problem at a byte offset of the text.
    pub(super) fn add(
        &mut self,
        at: Option<usize>,
        key: impl Into<String>,
        value: Option<String>,
        what: impl Into<String>,
    ) {
        let problem = Problem {
            place: self.place(at),
            key: key.into(),
            value,
            what: what.into(),
        };
        self.found.push((at, problem));
    }

    /// ` (line 12)`, or nothing when there is no file.
    pub(super) fn line_hint(&self, at: Option<usize>) -> String {
        self.place(at)
            .map_or_else(String::new, |place| format!(" (line {})", place.line))
    }

    fn place(&self, at: Option<usize>) -> Option<Place> {
        let (file, text) = self.source?;
        Some(Place::of(at?, text, file))
    }

    /// The result, if nothing was found.
    pub(super) fn or<T>(mut self, resolved: Option<T>) -> Result<T, ConfigError> {
        match resolved {
            Some(resolved) if self.found.is_empty() => Ok(resolved),
            _ => {
                debug_assert!(!self.found.is_empty(), "refused without a reason");
                self.found.sort_by_key(|(at, _)| *at);
                Err(ConfigError::Invalid(
                    self.found.into_iter().map(|(_, problem)| problem).collect(),
                ))
            }
        }
    }
}
