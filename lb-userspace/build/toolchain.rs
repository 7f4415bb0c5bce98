//! Which toolchain compiles the BPF objects, and what to say when there is none.
//!
//! Compiled into both the build script and `cargo xtask setup`, so that what setup installs is by construction what
//! the build looks for. Owns the choice only: running cargo is `build.rs`, installing is `xtask`.

use std::{
    env,
    ffi::OsString,
    fs,
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
    /// Major version of the compiler's LLVM, where it tells.
    pub llvm: Option<u32>,
}

/// What a look at one toolchain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub core: Core,
    pub llvm: Option<u32>,
}

/// Whether a linker with LLVM `linker` reads what a compiler with LLVM `compiler` writes: that of its own version and of older ones.
/// A linker that does not tell (a static one) is trusted: the published ones are built with the newest LLVM.
pub fn links(compiler: Option<u32>, linker: Option<u32>) -> bool {
    compiler
        .zip(linker)
        .is_none_or(|(compiler, linker)| compiler <= linker)
}

impl Launch {
    /// A program of this toolchain, with the variables removed by which the cargo that runs us would leak its own
    /// compiler (or clippy's driver) into it.
    pub fn command(&self, program: &str) -> Command {
        let mut cmd = match self {
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
}

impl Toolchain {
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

/// Picks a toolchain: what the person asked for, else a nightly with rust-src, else Debian's; of the latter two only one whose
/// output the linker, with LLVM `linker`, reads. `look` answers whether a toolchain exists, and what it is.
pub fn choose(
    asked: Option<&str>,
    linker: Option<u32>,
    look: impl Fn(&Launch) -> Option<Found>,
) -> Result<Toolchain, String> {
    let usable =
        |launch: Launch| look(&launch).map(|Found { core, llvm }| Toolchain { launch, core, llvm });
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
    let mut too_new = None;
    for launch in [
        Launch::Rustup("nightly".to_owned()),
        Launch::Prefix(PathBuf::from(DEBIAN_PREFIX)),
    ] {
        match usable(launch) {
            Some(found) if links(found.llvm, linker) => return Ok(found),
            Some(found) => too_new = too_new.or(found.llvm),
            None => {}
        }
    }
    Err(missing(&match (too_new, linker) {
        (Some(compiler), Some(linker)) => format!(
            "the only compiler for it has LLVM {compiler}, whose output {LINKER} with LLVM {linker} cannot read"
        ),
        _ => "no Rust toolchain that can compile for it was found".to_owned(),
    }))
}

/// `choose` on this machine, with the linker that is there.
pub fn find(workspace: &Path) -> Result<Toolchain, String> {
    let linker = find_linker(workspace).ok();
    choose(
        asked().as_deref(),
        linker.as_deref().and_then(llvm_of_linker),
        look,
    )
}

/// `choose` on this machine, whatever the linker: for setup, which can bring one that fits.
#[allow(dead_code, reason = "the build script has no use for it")]
pub fn find_whatever_links() -> Result<Toolchain, String> {
    choose(asked().as_deref(), None, look)
}

fn asked() -> Option<String> {
    env::var(OVERRIDE_VAR)
        .ok()
        .filter(|asked| !asked.is_empty())
}

fn look(launch: &Launch) -> Option<Found> {
    let rustc = |words: &[&str]| {
        let out = launch
            .command("rustc")
            .args(words)
            // A question must not turn into a download.
            .env("RUSTUP_AUTO_INSTALL", "0")
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|out| out.status.success())?;
        String::from_utf8(out.stdout).ok()
    };
    let sysroot = match launch {
        Launch::Prefix(prefix) => prefix.join("bin/cargo").exists().then(|| prefix.clone())?,
        Launch::Rustup(_) => PathBuf::from(rustc(&["--print", "sysroot"])?.trim()),
    };
    let rustlib = sysroot.join("lib/rustlib");
    let core = if rustlib.join(TARGET).is_dir() {
        Core::Prebuilt
    } else if rustlib.join("src/rust/library/core").is_dir() {
        Core::FromSource
    } else {
        return None;
    };
    Some(Found {
        core,
        llvm: rustc(&["-vV"]).and_then(|text| llvm_of_rustc(&text)),
    })
}

/// From what `rustc -vV` says.
fn llvm_of_rustc(verbose: &str) -> Option<u32> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Which LLVM a linker has, where it can be known: from the library it names, else from what cargo noted when it was installed.
/// (Its `--version` does not tell.)
pub fn llvm_of_linker(linker: &Path) -> Option<u32> {
    let noted = || {
        let notes = linker.parent()?.parent()?.join(".crates2.json");
        feature_of_linker(&fs::read_to_string(notes).ok()?)
    };
    fs::read(linker)
        .ok()
        .and_then(|bytes| llvm_library(&bytes))
        .or_else(noted)
}

/// The version in the name of the library a program is linked to: `libLLVM.so.22.1`, `libLLVM-22.so`.
fn llvm_library(program: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM";
    program
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(at, _)| {
            let rest = &program[at + NAME.len()..];
            let version = rest
                .strip_prefix(b".so.")
                .or_else(|| rest.strip_prefix(b"-"))?;
            leading_number(version)
        })
}

/// The feature `llvm-22` among those that `.crates2.json` lists for the linker.
fn feature_of_linker(notes: &str) -> Option<u32> {
    let entry = notes.split(&format!("\"{LINKER} ")).nth(1)?;
    let features = entry.split("\"features\":[").nth(1)?.split(']').next()?;
    leading_number(features.split("\"llvm-").nth(1)?.as_bytes())
}

fn leading_number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
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

    fn found(core: Core, llvm: u32) -> Found {
        Found {
            core,
            llvm: Some(llvm),
        }
    }

    fn only(present: &'static [(&'static str, Core, u32)]) -> impl Fn(&Launch) -> Option<Found> {
        move |launch| {
            let name = match launch {
                Launch::Rustup(name) => name.clone(),
                Launch::Prefix(path) => path.display().to_string(),
            };
            present
                .iter()
                .find(|(known, ..)| *known == name)
                .map(|(_, core, llvm)| found(*core, *llvm))
        }
    }

    fn both() -> impl Fn(&Launch) -> Option<Found> {
        only(&[
            ("/usr", Core::Prebuilt, 22),
            ("nightly", Core::FromSource, 23),
            ("/opt/rust", Core::Prebuilt, 22),
        ])
    }

    #[test]
    fn nightly_goes_before_debian() {
        for linker in [None, Some(23), Some(24)] {
            let chosen = choose(None, linker, both()).unwrap();
            assert_eq!(
                (chosen.launch, chosen.core),
                (Launch::Rustup("nightly".into()), Core::FromSource)
            );
        }
    }

    /// A nightly that came after the linker, with a newer LLVM.
    #[test]
    fn a_compiler_too_new_for_the_linker_is_passed_over() {
        let chosen = choose(None, Some(22), both()).unwrap();
        assert_eq!(chosen.launch, Launch::Prefix(PathBuf::from("/usr")));
        let message =
            choose(None, Some(22), only(&[("nightly", Core::FromSource, 23)])).unwrap_err();
        assert!(
            message.contains("LLVM 23, whose output bpf-linker with LLVM 22 cannot read"),
            "{message}"
        );
    }

    #[test]
    fn debian_serves_where_nightly_lacks_rust_src() {
        let chosen = choose(None, None, only(&[("/usr", Core::Prebuilt, 22)])).unwrap();
        assert_eq!(chosen.launch, Launch::Prefix(PathBuf::from("/usr")));
    }

    #[test]
    fn what_was_asked_for_wins_or_fails_by_name() {
        let chosen = choose(Some("/opt/rust"), Some(21), both()).unwrap();
        assert_eq!(chosen.launch, Launch::Prefix(PathBuf::from("/opt/rust")));
        let message = choose(Some("beta"), None, both()).unwrap_err();
        assert!(message.contains("SLUICE_BPF_TOOLCHAIN=beta"), "{message}");
    }

    #[test]
    fn nothing_found_says_how_to_get_either() {
        let message = choose(None, None, only(&[])).unwrap_err();
        assert!(
            message.contains("cargo xtask setup") && message.contains("rustc-web"),
            "{message}"
        );
    }

    #[test]
    fn llvm_is_read_from_compiler_and_linker() {
        assert_eq!(
            llvm_of_rustc("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"),
            Some(22)
        );
        assert_eq!(llvm_of_rustc("rustc 1.96.0\n"), None);
        assert_eq!(llvm_library(b"\0libLLVM\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_library(b"\0libLLVM-19.so.1\0"), Some(19));
        assert_eq!(llvm_library(b"\0libLLVM\0libLLVMCore.a"), None);
        let notes = r#"{"installs":{"bpf-linker 0.13.0 (registry)":{"bins":["bpf-linker"],"features":["llvm-22"]},
            "other 1.0.0":{"features":["llvm-19"]}}}"#;
        assert_eq!(feature_of_linker(notes), Some(22));
        assert_eq!(
            feature_of_linker(&notes.replace(r#"["llvm-22"]"#, "[]")),
            None
        );
    }
}
