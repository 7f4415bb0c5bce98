//! The suites: real traffic through the real daemon, each case in a laboratory of its own.
//!
//! What cannot run here (no root, a kernel feature missing) is shown as ignored, with the reason in its name.

mod config_errors;
mod connections;
mod control;
mod counters;
mod drain;
mod edges;
mod failover;
mod forward;
mod icmp;
mod laboratory;
mod lifecycle;
mod overlay;
mod passing;
mod setup;
mod spread;
mod standing;
mod tracking;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use lab::{daemon, interface, registry};
use libtest_mimic::{Arguments, Failed, Trial};

/// The cases of every suite, and what this machine offers them.
struct Suites {
    trials: Vec<Trial>,
    /// Why nothing that needs a laboratory can run here.
    missing: Option<&'static str>,
}

impl Suites {
    /// Adds a case of a suite.
    fn case(
        &mut self,
        suite: &str,
        name: impl AsRef<str>,
        run: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        self.case_needing(suite, name, None, run);
    }

    /// Adds a case that is only shown when `missing` says what it lacks.
    fn case_needing(
        &mut self,
        suite: &str,
        name: impl AsRef<str>,
        missing: Option<&str>,
        run: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        let name = name.as_ref();
        let trial = match self.missing.or(missing) {
            Some(reason) => Trial::test(format!("{suite}::{name} [skipped: {reason}]"), || Ok(()))
                .with_ignored_flag(true),
            None => Trial::test(format!("{suite}::{name}"), move || report(run)),
        };
        self.trials.push(trial);
    }
}

/// Runs a case; when it fails, its daemons' last words are part of the message.
fn report(run: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let logs = daemon::take_last_logs();
    let error = match outcome {
        Ok(Ok(())) => return Ok(()),
        // The causes, without the backtrace that `{:?}` would add.
        Ok(Err(error)) => error
            .chain()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n  because: "),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "panicked".to_owned()),
    };
    let logs: String = logs
        .iter()
        .map(|log| format!("\n--- the daemon's log ends with ---\n{log}"))
        .collect();
    Err(Failed::from(format!("{error}{logs}")))
}

fn main() -> Result<()> {
    registry::clean_up_on_signals()?;
    let arguments = Arguments::from_args();
    let missing = (!interface::is_root()).then_some("needs root");
    let mut suites = Suites {
        trials: Vec::new(),
        missing,
    };
    laboratory::add(&mut suites);
    forward::add(&mut suites);
    icmp::add(&mut suites);
    spread::add(&mut suites);
    failover::add(&mut suites);
    edges::add(&mut suites);
    counters::add(&mut suites);
    drain::add(&mut suites);
    control::add(&mut suites);
    lifecycle::add(&mut suites);
    connections::add(&mut suites);
    overlay::add(&mut suites);
    standing::add(&mut suites);
    tracking::add(&mut suites);
    passing::add(&mut suites);
    config_errors::add(&mut suites);
    libtest_mimic::run(&arguments, suites.trials).exit()
}
