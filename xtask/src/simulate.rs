//! `cargo xtask simulate`: builds the simulator with optimisations and runs it. Needs no root.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{process, setup, workspace::Workspace};

const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
const RUN_LIMIT: Duration = Duration::from_secs(15 * 60);

/// True when every scenario kept what is promised. Everything said before goes to stderr: stdout is the simulator's alone.
pub fn run(json: bool, scenarios: &[String]) -> Result<bool> {
    // The rules it runs are the daemon's, which cannot be built without its BPF objects.
    setup::run()?;
    let workspace = Workspace::find()?;
    let build = ["build", "--release", "--locked", "--package", "lb-simulate"];
    let mut build = workspace.cargo(&build);
    build.stdout(std::io::stderr());
    process::must(&mut build, BUILD_LIMIT).context("the simulator could not be built")?;

    let simulator = workspace.binary(true, "simulate").display().to_string();
    let mut words = vec![simulator.as_str()];
    words.extend(json.then_some("--json"));
    for scenario in scenarios {
        words.extend(["--scenario", scenario]);
    }
    let status = process::run(&mut process::command(&[], &words), RUN_LIMIT)?;
    Ok(status.success())
}
