//! The balancer's BPF object once more, with instructions of its own: what the laboratory upgrades a running daemon to.
//!
//! Owns when and where it is built. Does not own how (lb-userspace/build/compile.rs), nor what differs (lb-ebpf's feature `rebuilt`).

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, anyhow};

use crate::{
    compile::{self, Build},
    process, setup, toolchain,
    workspace::Workspace,
};

/// By it the suites learn where the object is.
pub const OBJECT_VAR: &str = "SLUICE_REBUILT_OBJECT";

const BIN: &str = "balancer";
const BUILD_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The command that builds it, and where it will be.
pub fn prepare(workspace: &Workspace) -> Result<(Command, PathBuf)> {
    let toolchain = toolchain::find(&workspace.root).map_err(|message| anyhow!(message))?;
    toolchain::find_linker(&workspace.root).map_err(|message| anyhow!(message))?;
    let target_dir = workspace.target_dir.join("rebuilt");
    let command = compile::command(
        &toolchain,
        &Build {
            workspace: &workspace.root,
            target_dir: &target_dir,
            arch: std::env::consts::ARCH,
            bins: &[BIN],
            features: &["rebuilt"],
        },
    );
    Ok((command, compile::object(&target_dir, BIN)))
}

/// Builds it and prints where it is, for suites that are started by hand.
pub fn run() -> Result<()> {
    setup::run()?;
    let (mut command, object) = prepare(&Workspace::find()?)?;
    process::must(&mut command, BUILD_LIMIT)?;
    println!("{}", object.display());
    Ok(())
}
