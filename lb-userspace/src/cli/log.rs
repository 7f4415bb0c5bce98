//! Where the long-running verbs write their log: stderr, for people or for machines.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::output::Style;

const FILTER_VARIABLE: &str = "SLUICE_LOG";

#[derive(Debug, Args)]
pub struct LogArgs {
    /// How log lines look on stderr; SLUICE_LOG chooses which (`info`, `debug`, `lb_userspace::health=trace`)
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, hide_env_values = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One line for a person
    Text,
    /// One JSON object per line
    Json,
}

/// Sets the process's log up; the first thing a long-running verb does.
pub fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_env_var(FILTER_VARIABLE)
        .with_default_directive(LevelFilter::INFO.into())
        .try_from_env();
    let filter = match filter {
        Ok(filter) => filter,
        // Not set is not wrong.
        Err(_) if std::env::var_os(FILTER_VARIABLE).is_none() => {
            EnvFilter::default().add_directive(LevelFilter::INFO.into())
        }
        // Its `source()` says the same again; the text alone is enough.
        Err(error) => {
            anyhow::bail!(
                "{FILTER_VARIABLE}: {error}; write for example info, debug or lb_userspace::health=trace"
            )
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let result = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder
            .with_ansi(Style::of(&io::stderr()).colour)
            // Module paths help where a person debugs, and cost width where a machine reads anyway.
            .with_target(io::stderr().is_terminal())
            .try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("cannot set the log up: {error}"))
}
