//! What a machine lacks, and the steps that mend it. Pure: facts in, steps out.

use crate::toolchain::{self, LINKER, LINKER_VERSION};

/// The LLVM of Debian's rustc-web.
pub(super) const DEBIAN_LLVM: u32 = 22;
pub(super) const DEBIAN_TOOLCHAIN: [&str; 3] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Programs the laboratory starts, and the packages that have them.
pub(super) const LAB_PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("ethtool", "ethtool")];
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// What was found on this machine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The LLVM version of the compiler the build will use; `None` without a usable compiler.
    pub(super) llvm: Option<u32>,
    pub(super) linker: bool,
    /// apt-get exists.
    pub(super) apt: bool,
    /// apt knows Debian's packages for the BPF target (asked only when something for the build is missing).
    pub(super) debian_toolchain: bool,
    pub(super) rustup: bool,
    pub(super) binstall: bool,
    /// Versions of LLVM whose development files are installed.
    pub(super) llvm_dev: Vec<u32>,
    pub(super) missing_programs: Vec<&'static str>,
    pub(super) promtool: bool,
    pub(super) bpffs: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Apt(Vec<String>),
    Nightly,
    /// From source, against this LLVM.
    BuildLinker(u32),
    /// The project's own static binary: works with every nightly.
    BinstallLinker,
    Promtool,
    MountBpffs,
}

impl Step {
    pub(super) fn needs_root(&self) -> bool {
        matches!(self, Step::Apt(_) | Step::MountBpffs)
    }

    /// Without the others a build still works; only the laboratory doesn't.
    pub(super) fn is_for_build(&self, facts: &Facts) -> bool {
        match self {
            Step::Apt(_) => facts.llvm.is_none() || !facts.linker,
            Step::Nightly | Step::BuildLinker(_) | Step::BinstallLinker => true,
            Step::Promtool | Step::MountBpffs => false,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Step::Apt(packages) => format!("Debian packages {}", packages.join(" ")),
            Step::Nightly => "rustup nightly with rust-src".to_owned(),
            Step::BuildLinker(llvm) => format!("{LINKER} {LINKER_VERSION}, built with LLVM {llvm}"),
            Step::BinstallLinker => format!("{LINKER}, prebuilt"),
            Step::Promtool => "promtool, from Debian's prometheus, into .tools".to_owned(),
            Step::MountBpffs => format!("the BPF file system on {BPFFS}"),
        }
    }

    /// What a person would type instead.
    pub(super) fn by_hand(&self) -> String {
        match self {
            Step::Apt(packages) => {
                format!(
                    "apt-get update && apt-get install -y --no-install-recommends {}",
                    packages.join(" ")
                )
            }
            Step::Nightly => {
                "rustup toolchain install nightly --profile minimal -c rust-src".to_owned()
            }
            Step::BuildLinker(llvm) => format!(
                "LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install {LINKER} --version {LINKER_VERSION} --locked \
                 --no-default-features --features llvm-{llvm} --root .tools"
            ),
            Step::BinstallLinker => format!("cargo binstall --no-confirm {LINKER}"),
            Step::Promtool => {
                "apt-get download prometheus && dpkg-deb -x prometheus_*.deb .tools/pkg && \
                               ln -s ../pkg/usr/bin/promtool .tools/bin/promtool"
                    .to_owned()
            }
            Step::MountBpffs => format!("mount -t bpf bpf {BPFFS}"),
        }
    }
}

/// What has to be done, in order; an error when there is no way known to get a compiler or a linker.
pub(super) fn plan(facts: &Facts) -> Result<Vec<Step>, String> {
    let mut packages: Vec<String> = Vec::new();
    let mut steps = Vec::new();
    let llvm = match facts.llvm {
        Some(llvm) => Some(llvm),
        None if facts.debian_toolchain => {
            packages.extend(DEBIAN_TOOLCHAIN.map(str::to_owned));
            Some(DEBIAN_LLVM)
        }
        None if facts.rustup => {
            steps.push(Step::Nightly);
            None
        }
        None => {
            return Err(toolchain::missing(
                "neither rustup nor Debian's packages for it are here",
            ));
        }
    };
    if !facts.linker {
        match llvm {
            Some(llvm) if facts.llvm_dev.contains(&llvm) => steps.push(Step::BuildLinker(llvm)),
            Some(DEBIAN_LLVM) if facts.debian_toolchain => {
                packages.push(format!("llvm-{DEBIAN_LLVM}-dev"));
                steps.push(Step::BuildLinker(DEBIAN_LLVM));
            }
            _ if facts.binstall => steps.push(Step::BinstallLinker),
            // The compiler at hand has an LLVM for which no linker can be had: Debian's compiler goes with Debian's LLVM, and the
            // build takes the compiler that goes with the linker.
            Some(_) if facts.debian_toolchain => {
                packages.extend(DEBIAN_TOOLCHAIN.map(str::to_owned));
                packages.push(format!("llvm-{DEBIAN_LLVM}-dev"));
                steps.push(Step::BuildLinker(DEBIAN_LLVM));
            }
            _ => {
                return Err(toolchain::missing(&format!(
                    "there is no {LINKER}, nor cargo-binstall to fetch one, nor an LLVM of the compiler's version to \
                     build it with"
                )));
            }
        }
    }
    if facts.apt {
        packages.extend(
            facts
                .missing_programs
                .iter()
                .map(|&package| package.to_owned()),
        );
        if !facts.promtool {
            steps.push(Step::Promtool);
        }
    }
    if !packages.is_empty() {
        steps.insert(0, Step::Apt(packages));
    }
    if !facts.bpffs {
        steps.push(Step::MountBpffs);
    }
    Ok(steps)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::setup) fn complete() -> Facts {
        Facts {
            llvm: Some(22),
            linker: true,
            apt: true,
            debian_toolchain: true,
            rustup: true,
            binstall: false,
            llvm_dev: Vec::new(),
            missing_programs: Vec::new(),
            promtool: true,
            bpffs: true,
        }
    }

    #[test]
    fn nothing_missing_means_nothing_to_do() {
        assert_eq!(plan(&complete()), Ok(Vec::new()));
    }

    #[test]
    fn bare_debian_gets_everything_packages_first() {
        let bare = Facts {
            llvm: None,
            linker: false,
            missing_programs: vec!["iproute2", "ethtool"],
            promtool: false,
            bpffs: false,
            ..complete()
        };
        let packages = [
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "llvm-22-dev",
            "iproute2",
            "ethtool",
        ];
        assert_eq!(
            plan(&bare),
            Ok(vec![
                Step::Apt(packages.map(str::to_owned).to_vec()),
                Step::BuildLinker(22),
                Step::Promtool,
                Step::MountBpffs,
            ])
        );
    }

    #[test]
    fn elsewhere_rustup_brings_the_compiler_and_binstall_the_linker() {
        let fedora = Facts {
            llvm: None,
            linker: false,
            apt: false,
            debian_toolchain: false,
            binstall: true,
            promtool: false,
            ..complete()
        };
        assert_eq!(plan(&fedora), Ok(vec![Step::Nightly, Step::BinstallLinker]));
    }

    #[test]
    fn a_linker_is_built_with_the_llvm_of_the_compiler() {
        let nightly = Facts {
            llvm: Some(23),
            linker: false,
            llvm_dev: vec![22, 23],
            ..complete()
        };
        assert_eq!(plan(&nightly), Ok(vec![Step::BuildLinker(23)]));
        // Debian's LLVM 22 would be no help to a compiler with LLVM 23.
        let message = plan(&Facts {
            llvm_dev: vec![22],
            debian_toolchain: false,
            ..nightly
        })
        .unwrap_err();
        assert!(message.contains("cargo binstall bpf-linker"), "{message}");
    }

    #[test]
    fn a_nightly_too_new_for_any_linker_leaves_debians_compiler() {
        let nightly = Facts {
            llvm: Some(23),
            linker: false,
            ..complete()
        };
        let packages = [
            "rustc-web",
            "cargo-web",
            "libstd-rust-web-dev-bpf",
            "llvm-22-dev",
        ];
        assert_eq!(
            plan(&nightly),
            Ok(vec![
                Step::Apt(packages.map(str::to_owned).to_vec()),
                Step::BuildLinker(22)
            ])
        );
        // The project's own static linker reads the output of every compiler.
        let binstall = Facts {
            binstall: true,
            ..nightly
        };
        assert_eq!(plan(&binstall), Ok(vec![Step::BinstallLinker]));
    }

    #[test]
    fn without_any_way_the_message_names_both() {
        let nowhere = Facts {
            llvm: None,
            debian_toolchain: false,
            rustup: false,
            ..complete()
        };
        let message = plan(&nowhere).unwrap_err();
        assert!(
            message.contains("rustup toolchain install nightly -c rust-src"),
            "{message}"
        );
        assert!(message.contains("libstd-rust-web-dev-bpf"), "{message}");
        assert!(!message.contains('\n'), "one paragraph: {message}");
    }
}
