//! Sluice's chores, run as `cargo xtask …`.
//!
//! Owns what surrounds the code: installing what a build needs, building and starting demo and simulator, running every test
//! and adding up the results. Does not own how the BPF objects are built (lb-userspace/build) nor what a test does.

mod demo;
mod process;
mod rebuilt;
mod setup;
mod simulate;
mod suite;
mod totals;
mod workspace;

// The build script's own rule for what compiles the BPF objects: setup must install exactly that.
#[path = "../../lb-userspace/build/toolchain.rs"]
mod toolchain;
// And its rule for how, for the object that is built once more.
#[path = "../../lb-userspace/build/compile.rs"]
mod compile;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command};

fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .help(help)
            .action(ArgAction::SetTrue)
    };
    Command::new("cargo xtask")
        .about("Sluice's chores")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("setup")
                .about("Install what building and testing need and this machine lacks")
                .arg(flag(
                    "check",
                    "Only report; exit 1 when something is missing",
                )),
        )
        .subcommand(
            Command::new("demo")
                .about(
                    "Balance real connections in a laboratory of network namespaces (needs root)",
                )
                .arg(flag(
                    "json",
                    "End with one JSON object as the only output on stdout",
                ))
                .arg(flag(
                    "release",
                    "Build with optimisations (slower to build)",
                )),
        )
        .subcommand(
            Command::new("simulate")
                .about(
                    "Simulate what changes, failures and floods break, and what remembering costs, beside other designs",
                )
                .after_help("Built with optimisations, needs no root. The scenarios are files in simulate/scenarios/.")
                .arg(flag("json", "Print one JSON object"))
                .arg(
                    Arg::new("scenario")
                        .long("scenario")
                        .value_name("NAME")
                        .action(ArgAction::Append)
                        .help("Only this scenario (may be given again)"),
                ),
        )
        .subcommand(
            Command::new("test")
                .about("Run every test and sum the results up in one line")
                .arg(
                    Arg::new("filter")
                        .value_name("FILTER")
                        .help("Only tests whose name contains this"),
                ),
        )
        .subcommand(Command::new("rebuilt").about(
            "Build a data path that differs from the daemon's, and print where it is (SLUICE_REBUILT_OBJECT of the suites)",
        ))
        .subcommand(Command::new("ci").about("Formatting, clippy, then every test"))
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("setup", args)) if args.get_flag("check") => setup::check(),
        Some(("setup", _)) => setup::run().map(|()| true),
        Some(("demo", args)) => {
            demo::run(args.get_flag("json"), args.get_flag("release")).map(|()| true)
        }
        Some(("simulate", args)) => {
            let scenarios = args.get_many::<String>("scenario").unwrap_or_default();
            let scenarios: Vec<String> = scenarios.cloned().collect();
            simulate::run(args.get_flag("json"), &scenarios)
        }
        Some(("test", args)) => suite::test(args.get_one::<String>("filter").map(String::as_str)),
        Some(("rebuilt", _)) => rebuilt::run().map(|()| true),
        Some(("ci", _)) => suite::ci(),
        _ => unreachable!("clap requires one of the subcommands above"),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
