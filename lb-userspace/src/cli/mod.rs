//! The command line: what may be typed, and which exit code follows.
//!
//! Owns: verbs, options, help, exit codes, how answers look. Does not own: what is done; that is the daemon's,
//! reached over the control socket (`api::client`), or for `run`, `check` and `decap` a call into the library.

mod address;
mod backend;
mod check;
mod completions;
mod control;
mod decap;
mod drain;
mod log;
mod output;
mod overlay;
mod run;
mod service;
mod status;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::api::client::{Client, ClientError, DEFAULT_SOCKET};

/// Where the configuration is unless said otherwise.
const DEFAULT_CONFIG: &str = "/etc/sluice/sluice.toml";

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Sluice balances TCP and UDP services over backends, in the kernel, with XDP.
///
/// One daemon per balancer (`sluice run`) programs the kernel; the other verbs ask it over a Unix socket.
/// The data path keeps forwarding while the daemon restarts; `sluice detach` takes it down.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    socket: Socket,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  sluice check --config ./sluice.toml          Would this configuration work on this host?
  sudo sluice run --config ./sluice.toml       Start balancing
  sluice status                                Is everything well?
  sluice backend list web                      Who serves `web`, and how much?
  sluice backend drain web 10.0.0.12 --reason 'kernel update'
  sluice backend activate web 10.0.0.12
  sluice diff                                  What differs from the configuration file?

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon cannot be reached.";

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Service(service::ServiceArgs),
    Backend(backend::BackendArgs),
    Diff(overlay::DiffArgs),
    Reset(overlay::ResetArgs),
    Save(overlay::SaveArgs),
    Reload(control::ReloadArgs),
    Decap(decap::DecapArgs),
    Detach(control::DetachArgs),
    Completions(completions::CompletionsArgs),
}

#[derive(Debug, Args)]
struct Socket {
    /// The daemon's control socket [default: /run/sluice/sluice.sock]
    ///
    /// `run` takes it from `[api] socket` of its configuration instead.
    #[arg(
        long,
        global = true,
        env = "SLUICE_SOCKET",
        value_name = "PATH",
        hide_env_values = true
    )]
    socket: Option<PathBuf>,
}

impl Socket {
    fn client(self) -> Client {
        Client::new(self.socket.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)))
    }
}

#[derive(Debug, Args)]
struct ConfigPath {
    /// The configuration file
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE", default_value = DEFAULT_CONFIG, hide_env_values = true)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Json {
    /// Print the answer as JSON, with the schema of the control socket
    #[arg(long, global = true)]
    json: bool,
}

/// Why a verb did not do what it was asked, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self {
            code: EXIT_USAGE,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self {
            code: error.exit_code(),
            message: error.to_string(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            code: EXIT_FAILED,
            message: format!("{error:#}"),
        }
    }
}

/// Parses the command line, carries it out, and gives the exit code of the user contract.
pub fn main() -> ExitCode {
    let Cli { socket, verb } = Cli::parse();
    let result = match verb {
        Verb::Run(args) => run::run(args),
        Verb::Check(args) => check::run(args),
        Verb::Status(args) => status::run(args, &socket.client()),
        Verb::Service(args) => service::run(args, &socket.client()),
        Verb::Backend(args) => backend::run(args, &socket.client()),
        Verb::Diff(args) => overlay::diff(args, &socket.client()),
        Verb::Reset(args) => overlay::reset(args, &socket.client()),
        Verb::Save(args) => overlay::save(args, &socket.client()),
        Verb::Reload(args) => control::reload(args, &socket.client()),
        Verb::Decap(args) => decap::run(args),
        Verb::Detach(args) => control::detach(args, socket),
        Verb::Completions(args) => completions::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A verb that has said everything on stdout fails without a message.
            if !failure.message.is_empty() {
                eprintln!("error: {failure}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Runs what a verb waits for; one thread is enough to ask.
fn wait<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_option_has_a_help_text() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{path}: {} has no help",
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(|sub| walk(sub, &path));
        }
        walk(&Cli::command(), "");
    }
}
