//! Compiles lb-ebpf's programs for the BPF target and leaves them as `$OUT_DIR/<bin>`, ready for
//! `aya::include_bytes_aligned!`.
//!
//! aya-build would be the ready-made way, but 0.2 fixes the compiler flags (ours need two more for the linker, worth
//! 14 ns a packet), can't pass `--locked`, and reports cargo's progress as warnings.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow, bail};

#[path = "build/compile.rs"]
mod compile;
#[path = "build/toolchain.rs"]
mod toolchain;

use compile::Build;
use toolchain::OVERRIDE_VAR;

const BINS: [&str; 2] = ["balancer", "decap"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not returned from main: with RUST_BACKTRACE set the paragraph that helps would drown in a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let workspace = manifest_dir
        .parent()
        .context("lb-userspace is not inside the workspace")?;

    // Cargo.lock stands for the versions of aya-ebpf and its like, which are no dependencies of this crate.
    for source in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/compile.rs");
    println!("cargo:rerun-if-changed=build/toolchain.rs");
    println!("cargo:rerun-if-env-changed={OVERRIDE_VAR}");

    build_objects(workspace, &out_dir)
}

fn build_objects(workspace: &Path, out_dir: &Path) -> Result<()> {
    let toolchain = toolchain::find(workspace).map_err(|message| anyhow!(message))?;
    toolchain::find_linker(workspace).map_err(|message| anyhow!(message))?;

    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    let target_dir = out_dir.join("bpf");
    let mut cargo = compile::command(
        &toolchain,
        &Build {
            workspace,
            target_dir: &target_dir,
            arch: &arch,
            bins: &BINS,
            features: &[],
        },
    );
    let output = cargo
        .output()
        .with_context(|| format!("can't start {cargo:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "building the BPF objects with {} failed ({}):\n{stderr}",
            toolchain.describe(),
            output.status
        );
    }
    // What remains with --quiet are compiler warnings; they deserve to be seen, and are shown again on every run.
    for line in stderr.lines() {
        println!("cargo:warning={line}");
    }

    for bin in BINS {
        let built = compile::object(&target_dir, bin);
        let kept = out_dir.join(bin);
        fs::copy(&built, &kept)
            .with_context(|| format!("can't copy {} to {}", built.display(), kept.display()))?;
    }
    Ok(())
}
