//! Which toolchain compiles the BPF objects, and what to say when there is none.
//!
//! Compiled into both the build script and `cargo xtask setup`, so that what setup installs is by construction what
//! the build looks for. Owns the choice only: running cargo is `build.rs`, installing is `xtask`.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names a rustup toolchain, or a directory with `bin/cargo` and `bin/rustc`, that goes before anything found.
pub const OVERRIDE_VAR: &str = "SLUICE_BPF_TOOLCHAIN";
pub const TARGET: &str = "bpfel-unknown-none";
pub const LINKER: &str = "bpf-linker";
pub const LINKER_VERSION: &str = "0.13.0";

/// Where Debian's rustc-web lives; libstd-rust-web-dev-bpf puts a prebuilt `core` for the BPF target beside it.
const DEBIAN_PREFIX: &str = "/usr";

/// Where `core` for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Shipped with the compiler. The compiler is then a stable one, and BPF needs a few unstable features.
    Prebuilt,
    /// Compiled from the rust-src component, which only a nightly cargo agrees to do.
    FromSource,
}

/// How to start cargo and rustc of a toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    Rustup(String),
    Prefix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub launch: Launch,
    pub core: Core,
}

impl Toolchain {
    /// A program of this toolchain, with the variables removed by which the cargo that runs us would leak its own
    /// compiler (or clippy's driver) into it.
    pub fn command(&self, program: &str) -> Command {
        let mut cmd = match &self.launch {
            Launch::Rustup(name) => {
                let mut cmd = Command::new("rustup");
                cmd.args(["run", name, program]).env_remove("RUSTC");
                cmd
            }
            Launch::Prefix(prefix) => {
                let bin = prefix.join("bin");
                let mut cmd = Command::new(bin.join(program));
                cmd.env("RUSTC", bin.join("rustc"));
                cmd
            }
        };
        for leaked in [
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            cmd.env_remove(leaked);
        }
        cmd
    }

    pub fn describe(&self) -> String {
        let core = match self.core {
            Core::Prebuilt => "prebuilt core",
            Core::FromSource => "core from rust-src",
        };
        match &self.launch {
            Launch::Rustup(name) => format!("rustup toolchain {name} ({core})"),
            Launch::Prefix(prefix) => format!("{}/bin/rustc ({core})", prefix.display()),
        }
    }
}

/// Picks a toolchain: what the person asked for, else a nightly with rust-src, else Debian's.
/// `core_of` answers whether a toolchain exists and how it comes by `core`.
pub fn choose(
    asked: Option<&str>,
    core_of: impl Fn(&Launch) -> Option<Core>,
) -> Result<Toolchain, String> {
    let usable = |launch: Launch| core_of(&launch).map(|core| Toolchain { launch, core });
    if let Some(asked) = asked {
        let launch = if asked.contains('/') {
            Launch::Prefix(PathBuf::from(asked))
        } else {
            Launch::Rustup(asked.to_owned())
        };
        return usable(launch).ok_or_else(|| {
            format!(
                "{OVERRIDE_VAR}={asked} has neither a prebuilt core for {TARGET} nor the rust-src component; \
                 unset it to let the build choose, or run `rustup component add rust-src --toolchain {asked}`"
            )
        });
    }
    usable(Launch::Rustup("nightly".to_owned()))
        .or_else(|| usable(Launch::Prefix(PathBuf::from(DEBIAN_PREFIX))))
        .ok_or_else(|| missing("no Rust toolchain that can compile for it was found"))
}

/// `choose` on this machine.
pub fn find() -> Result<Toolchain, String> {
    let asked = env::var(OVERRIDE_VAR)
        .ok()
        .filter(|asked| !asked.is_empty());
    choose(asked.as_deref(), core_of)
}

fn core_of(launch: &Launch) -> Option<Core> {
    let sysroot = match launch {
        Launch::Prefix(prefix) => prefix.join("bin/cargo").exists().then(|| prefix.clone())?,
        Launch::Rustup(name) => {
            let out = Command::new("rustup")
                .args(["run", name, "rustc", "--print", "sysroot"])
                // A question must not turn into a download.
                .env("RUSTUP_AUTO_INSTALL", "0")
                .stderr(Stdio::null())
                .output()
                .ok()
                .filter(|out| out.status.success())?;
            PathBuf::from(String::from_utf8(out.stdout).ok()?.trim())
        }
    };
    let rustlib = sysroot.join("lib/rustlib");
    if rustlib.join(TARGET).is_dir() {
        Some(Core::Prebuilt)
    } else if rustlib.join("src/rust/library/core").is_dir() {
        Some(Core::FromSource)
    } else {
        None
    }
}

/// `PATH` with the workspace's own tools in front, so that the linker `xtask setup` built wins over a stray one.
pub fn path_with_tools(workspace: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(workspace.join(".tools/bin")).chain(env::split_paths(&path));
    // Only a directory name with a colon can't be joined; then the tools can't be on a PATH at all.
    env::join_paths(dirs).unwrap_or(path)
}

/// The BPF linker rustc will start.
pub fn find_linker(workspace: &Path) -> Result<PathBuf, String> {
    env::split_paths(&path_with_tools(workspace))
        .map(|dir| dir.join(LINKER))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| missing(&format!("`{LINKER}` is neither in PATH nor in .tools/bin")))
}

/// One paragraph: what is missing, and both ways to get it.
pub fn missing(what: &str) -> String {
    format!(
        "Sluice's data path is compiled for {TARGET}, but {what}. Run `cargo xtask setup`, which installs what is \
         missing; or install it by hand: with rustup, `rustup toolchain install nightly -c rust-src` and \
         `cargo binstall {LINKER}` (with the LLVM that nightly uses installed, `cargo install {LINKER}`); on Debian \
         12, `apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev` and \
         `LLVM_PREFIX=/usr/lib/llvm-22 cargo install {LINKER} --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-22 --root .tools`."
    )
}

// Run as part of xtask: build scripts have no tests.
#[cfg(test)]
mod tests {
    use super::*;

    fn only(present: &'static [(&'static str, Core)]) -> impl Fn(&Launch) -> Option<Core> {
        move |launch| {
            let name = match launch {
                Launch::Rustup(name) => name.clone(),
                Launch::Prefix(path) => path.display().to_string(),
            };
            present
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, core)| *core)
        }
    }

    #[test]
    fn nightly_goes_before_debian() {
        let both = only(&[("/usr", Core::Prebuilt), ("nightly", Core::FromSource)]);
        let chosen = choose(None, both).unwrap();
        assert_eq!(
            (chosen.launch, chosen.core),
            (Launch::Rustup("nightly".into()), Core::FromSource)
        );
    }

    #[test]
    fn debian_serves_where_nightly_lacks_rust_src() {
        let chosen = choose(None, only(&[("/usr", Core::Prebuilt)])).unwrap();
        assert_eq!(chosen.launch, Launch::Prefix(PathBuf::from("/usr")));
    }

    #[test]
    fn what_was_asked_for_wins_or_fails_by_name() {
        let both = || only(&[("nightly", Core::FromSource), ("/opt/rust", Core::Prebuilt)]);
        let chosen = choose(Some("/opt/rust"), both()).unwrap();
        assert_eq!(chosen.launch, Launch::Prefix(PathBuf::from("/opt/rust")));
        let message = choose(Some("beta"), both()).unwrap_err();
        assert!(message.contains("SLUICE_BPF_TOOLCHAIN=beta"), "{message}");
    }

    #[test]
    fn nothing_found_says_how_to_get_either() {
        let message = choose(None, only(&[])).unwrap_err();
        assert!(
            message.contains("cargo xtask setup") && message.contains("rustc-web"),
            "{message}"
        );
    }
}
