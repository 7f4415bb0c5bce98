//! `demo [--json]`: real connections, balanced by the real daemon, with a backend dying on the way.
//!
//! Built and run by `cargo xtask demo`.

use std::process::ExitCode;

use clap::Parser;

/// Shows Sluice balancing TCP connections in network namespaces on this machine; nothing else is touched.
///
/// Ends with 0 only if every backend's counters agree with what it served and received, and no connection failed
/// but between a backend's death and the change of the lookup table.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Tell the story on stderr, and print one JSON object with the results on stdout
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = lab::registry::clean_up_on_signals() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    match lab::demo::run(arguments.json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join("\n  because: "));
            for log in lab::daemon::take_last_logs() {
                eprintln!("--- the daemon's log ends with ---\n{log}");
            }
            ExitCode::FAILURE
        }
    }
}
