//! `cargo xtask demo`: prepares the machine, builds, and becomes the demo as root.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, Root},
    setup,
    workspace::Workspace,
};

const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Returns only when something went wrong before the demo started. Everything said until then goes to stderr: stdout
/// is the demo's alone.
pub fn run(json: bool, release: bool) -> Result<()> {
    setup::run()?;
    let workspace = Workspace::find()?;
    let mut build = workspace.cargo(&["build", "--workspace", "--locked"]);
    build
        .args(release.then_some("--release"))
        .stdout(std::io::stderr());
    process::must(&mut build, BUILD_LIMIT).context("the demo could not be built")?;

    let Some(prefix) = Root::detect().prefix_interactive() else {
        bail!(
            "the demo makes network namespaces and loads XDP programs, which only root may; this isn't root and sudo \
             can't be used here. Run `sudo -E cargo xtask demo`, or use the VM of vagrant/README.md"
        );
    };
    let sluice = format!(
        "SLUICE_BIN={}",
        workspace.binary(release, "sluice").display()
    );
    let demo = workspace.binary(release, "demo").display().to_string();
    // The prefix ends in env, which no sudo policy takes away.
    let mut words = vec![sluice.as_str(), &demo];
    words.extend(json.then_some("--json"));
    let mut demo = process::command(&prefix, &words);
    demo.stdin(Stdio::inherit());
    Err(become_it(&mut demo))
}

/// Replaces this process, so that signals and the exit code are the demo's own.
fn become_it(cmd: &mut Command) -> anyhow::Error {
    let error = cmd.exec();
    anyhow::Error::new(error).context(format!("can't start `{}`", process::show(cmd)))
}
