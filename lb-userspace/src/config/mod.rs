//! `sluice.toml`: from text to a checked [`Config`], or to the list of everything that is wrong with it.
//!
//! Owns: the keys, their defaults and the rules between them. Does not own: what the host can do (`check`), nor what
//! operators change at run time (`state`); a service that comes through the control socket obeys the same rules.
//!
//! Text becomes a [`raw`] tree that remembers where everything stands; [`read`] takes typed values out of it; `node`,
//! `service` and `health` resolve them, and [`resolve`] applies the rules that span services. A wrong value is noted and
//! replaced by its default, so that one pass finds every problem; what was resolved is then thrown away.

mod error;
mod health;
mod node;
mod raw;
mod read;
mod resolve;
mod service;
mod write;

use std::path::Path;

pub use error::{ConfigError, Place, Problem};

use crate::model::{Config, ServiceSpec};
use error::Problems;

pub use service::unusable;
pub use write::{service_to_json, to_toml};

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file),
        Err(error) => Err(ConfigError::Read {
            file,
            reason: error.to_string(),
        }),
    }
}

/// Checks `text`; `file` is what messages call it.
pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let root = raw::from_toml(text).map_err(|error| ConfigError::syntax(&error, text, file))?;
    let mut problems = Problems::in_file(file, text);
    let config = resolve::config(&root, &mut problems);
    problems.or(config)
}

/// Checks one service given as JSON, with the keys and rules of a `[[service]]`. Problems are placed at
/// `service.<key>`. What depends on other services (names, VIPs, capacity) is the caller's to check.
pub fn parse_service(value: serde_json::Value) -> Result<ServiceSpec, ConfigError> {
    let node = raw::from_json(value);
    let mut problems = Problems::without_file();
    let declared = service::declared(&node, "service".to_owned(), &mut problems);
    problems.or(declared.spec)
}
