//! Looking at this machine: which of the needs are met.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::plan::{BPFFS, DEBIAN_TOOLCHAIN, Facts, LAB_PROGRAMS};
use crate::{process, toolchain};

pub(super) fn gather(root: &Path) -> Facts {
    let in_path = |program: &str| in_path(root, program);
    let apt = in_path("apt-get");
    // Where the linker is too old for every compiler, it is the linker that is missing.
    let llvm = toolchain::find(root)
        .or_else(|_| toolchain::find_whatever_links())
        .ok()
        .and_then(|found| found.llvm);
    // A linker whose libLLVM is gone can't start, and has to be made again.
    let linker = toolchain::find_linker(root).is_ok_and(|linker| {
        toolchain::links(llvm, toolchain::llvm_of_linker(&linker))
            && process::ask(linker, &["--version"]).is_some()
    });
    // Asking apt takes a second, and setup goes before every test run.
    let ask_apt = apt && (llvm.is_none() || !linker);
    Facts {
        llvm,
        linker,
        apt,
        debian_toolchain: ask_apt && DEBIAN_TOOLCHAIN.iter().all(|package| apt_knows(package)),
        rustup: in_path("rustup"),
        binstall: in_path("cargo-binstall"),
        llvm_dev: (21..=23)
            .filter(|llvm| llvm_prefix(*llvm).join("bin/llvm-config").exists())
            .collect(),
        missing_programs: LAB_PROGRAMS
            .iter()
            .filter(|(program, _)| !in_path(program))
            .map(|(_, package)| *package)
            .collect(),
        promtool: in_path("promtool"),
        bpffs: fs::read_to_string("/proc/mounts").is_ok_and(|mounts| has_bpffs(&mounts)),
    }
}

/// On a Debian whose packages for the BPF target are needed, but not known to apt.
pub(super) fn lacks_lists(facts: &Facts) -> bool {
    let for_build = facts.llvm.is_none() || !facts.linker;
    for_build && facts.apt && !facts.debian_toolchain && on_debian()
}

pub(super) fn apt_knows(package: &str) -> bool {
    process::ask("apt-cache", &["show", "--no-all-versions", package])
        .is_some_and(|text| !text.trim().is_empty())
}

fn on_debian() -> bool {
    fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "ID=debian"))
}

/// Looks where root's programs are, too: /usr/sbin is not in everybody's PATH.
fn in_path(root: &Path, program: &str) -> bool {
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&toolchain::path_with_tools(root))
        .chain(sbin)
        .any(|dir| dir.join(program).is_file())
}

pub(super) fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_mount_on_its_place_counts() {
        assert!(has_bpffs(
            "sysfs /sys/fs/bpf sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!has_bpffs(
            "bpf /run/bpf bpf rw 0 0\nsysfs /sys/fs/bpf sysfs rw 0 0\n"
        ));
    }
}
