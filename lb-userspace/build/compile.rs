//! How the BPF objects are compiled: cargo's arguments, the compiler's flags.
//!
//! Compiled into both the build script and `cargo xtask`, which builds the balancer a second time to test upgrades with. Owns the
//! command only: which toolchain runs it is `toolchain.rs`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::toolchain::{self, Core, TARGET, Toolchain};

const PACKAGE: &str = "lb-ebpf";

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

/// One build of lb-ebpf.
pub struct Build<'a> {
    pub workspace: &'a Path,
    /// Where the objects go, see [`object`].
    pub target_dir: &'a Path,
    /// The architecture of the host that will load them, as `CARGO_CFG_TARGET_ARCH` has it.
    pub arch: &'a str,
    pub bins: &'a [&'a str],
    pub features: &'a [&'a str],
}

/// The command that builds.
pub fn command(toolchain: &Toolchain, build: &Build<'_>) -> Command {
    // aya-ebpf takes the layout of pt_regs from this; the spelling is aya's.
    let arch = if build.arch.starts_with("riscv64") {
        "riscv64"
    } else {
        build.arch
    };
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
    ];
    flags.extend(LINK_ARGS.map(str::to_owned));

    let mut cargo = toolchain.launch.command("cargo");
    cargo
        .current_dir(build.workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            PACKAGE,
            "--release",
            "--target",
            TARGET,
        ])
        .args(build.bins.iter().flat_map(|bin| ["--bin", bin]))
        .args(["--features", &build.features.join(",")])
        .arg("--target-dir")
        .arg(build.target_dir)
        .env("PATH", toolchain::path_with_tools(build.workspace))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // One set of intermediates for check, clippy, debug and release builds of the daemon.
        .env(
            "CARGO_BUILD_BUILD_DIR",
            build.workspace.join("target/bpf-build"),
        )
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
    cargo
}

/// Where a build has left an object.
pub fn object(target_dir: &Path, bin: &str) -> PathBuf {
    target_dir.join(TARGET).join("release").join(bin)
}
