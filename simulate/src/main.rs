//! `simulate`: built and run by `cargo xtask simulate`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use lb_simulate::{Outcome, Scenario, report, simulate, verdict};
use serde::Serialize;

/// Compares what changes, failures and floods break under Sluice and under other designs, and what each has to remember.
///
/// Ends with 0 only if every scenario keeps what is promised.
#[derive(Parser)]
#[command(name = "simulate")]
struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Only this one (may be given again)
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    scenarios: Vec<Outcome>,
    /// Promises that were not kept.
    complaints: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Who reads us has seen enough.
        Err(error) if error.downcast_ref().is_some_and(is_broken_pipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

fn run(arguments: &Arguments) -> Result<bool> {
    let mut out = io::stdout().lock();
    let mut scenarios = Scenario::all()?;
    for name in &arguments.scenario {
        if scenarios.iter().all(|scenario| scenario.name != *name) {
            let names: Vec<_> = scenarios.iter().map(|s| s.name.as_str()).collect();
            bail!("no scenario {name:?}; there are {}", names.join(", "));
        }
    }
    if !arguments.scenario.is_empty() {
        scenarios.retain(|scenario| arguments.scenario.contains(&scenario.name));
    }
    let mut report = Report {
        scenarios: Vec::new(),
        complaints: Vec::new(),
    };
    for scenario in &scenarios {
        let outcomes = simulate(scenario);
        if !arguments.json {
            writeln!(out, "{}", report::text(scenario, &outcomes))?;
        }
        for complaint in verdict::complaints(scenario, &outcomes) {
            let complaint = format!("{}: {complaint}", scenario.name);
            eprintln!("{complaint}");
            report.complaints.push(complaint);
        }
        report.scenarios.extend(outcomes);
    }
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    }
    Ok(report.complaints.is_empty())
}
