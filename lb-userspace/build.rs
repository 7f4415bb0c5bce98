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

#[path = "build/toolchain.rs"]
mod toolchain;

use toolchain::{Core, OVERRIDE_VAR, TARGET};

const PACKAGE: &str = "lb-ebpf";
const BINS: [&str; 2] = ["balancer", "decap"];

/// Crates that may use unstable features when the compiler is a stable one. Naming them, instead of `1`, keeps every
/// other crate's feature detection honest.
const UNSTABLE_CRATES: [&str; 6] = [
    "aya_ebpf",
    "aya_log_ebpf",
    "lb_common",
    "lb_ebpf",
    "balancer",
    "decap",
];

const LINK_ARGS: [&str; 3] = [
    "-Clink-arg=--btf",
    // Without it every unaligned header read becomes byte loads.
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    // Without it copies of addresses and headers are expanded in an order the verifier sees as many more instructions.
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

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
    println!("cargo:rerun-if-changed=build/toolchain.rs");
    println!("cargo:rerun-if-env-changed={OVERRIDE_VAR}");

    build_objects(workspace, &out_dir)
}

fn build_objects(workspace: &Path, out_dir: &Path) -> Result<()> {
    let toolchain = toolchain::find(workspace).map_err(|message| anyhow!(message))?;
    toolchain::find_linker(workspace).map_err(|message| anyhow!(message))?;

    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    // aya-ebpf takes the layout of pt_regs from this; the spelling is aya's.
    let arch = if arch.starts_with("riscv64") {
        "riscv64"
    } else {
        &arch
    };
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
    ];
    flags.extend(LINK_ARGS.map(str::to_owned));

    let target_dir = out_dir.join("bpf");
    let mut cargo = toolchain.launch.command("cargo");
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            PACKAGE,
            "--bins",
            "--release",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("PATH", toolchain::path_with_tools(workspace))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // One set of intermediates for check, clippy, debug and release builds of the daemon.
        .env("CARGO_BUILD_BUILD_DIR", workspace.join("target/bpf-build"))
        .env("CARGO_INCREMENTAL", "0")
        // The object is the same whatever the workspace's profiles say: the verifier refuses unoptimised code, and
        // bpf-linker does the link-time optimisation itself.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    match toolchain.core {
        Core::Prebuilt => cargo.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES.join(",")),
        Core::FromSource => cargo.args(["-Z", "build-std=core"]),
    };

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
        let built = target_dir.join(TARGET).join("release").join(bin);
        let kept = out_dir.join(bin);
        fs::copy(&built, &kept)
            .with_context(|| format!("can't copy {} to {}", built.display(), kept.display()))?;
    }
    Ok(())
}
