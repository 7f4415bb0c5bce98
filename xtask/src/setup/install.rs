//! Carrying a step out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    machine::{apt_knows, llvm_prefix},
    plan::{BPFFS, Step},
};
use crate::{
    process::{self, Root},
    toolchain::{LINKER, LINKER_VERSION},
    workspace,
};

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn perform(step: &Step, root: &Path, rights: Root) -> Result<()> {
    match step {
        Step::Apt(packages) => apt_install(packages, rights),
        Step::Nightly => process::must(
            Command::new("rustup").args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "-c",
                "rust-src",
            ]),
            15 * MINUTE,
        ),
        Step::BuildLinker(llvm) => process::must(
            Command::new(workspace::cargo_program())
                .current_dir(root)
                .args([
                    "install",
                    LINKER,
                    "--version",
                    LINKER_VERSION,
                    "--locked",
                    "--no-default-features",
                    "--force",
                ])
                .args(["--features", &format!("llvm-{llvm}"), "--root", ".tools"])
                .env("LLVM_PREFIX", llvm_prefix(*llvm)),
            15 * MINUTE,
        ),
        Step::BinstallLinker => process::must(
            Command::new("cargo-binstall").current_dir(root).args([
                "--no-confirm",
                "--root",
                ".tools",
                LINKER,
            ]),
            5 * MINUTE,
        ),
        Step::Promtool => promtool(root),
        Step::MountBpffs => {
            let prefix = rights.prefix().context("needs root")?;
            process::must(
                &mut process::command(&prefix, &["mount", "-t", "bpf", "bpf", BPFFS]),
                MINUTE,
            )
        }
    }
}

/// Only the program: installing the package would start a Prometheus server.
fn promtool(root: &Path) -> Result<()> {
    let package = root.join(".tools/pkg");
    let link = root.join(".tools/bin/promtool");
    fs::create_dir_all(&package)?;
    fs::create_dir_all(root.join(".tools/bin"))?;
    let downloads = || -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&package)?.collect::<Result<Vec<_>, _>>()?;
        Ok(entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "deb"))
            .collect())
    };
    process::must(
        Command::new("apt-get")
            .current_dir(&package)
            .args(["-qq", "download", "prometheus"]),
        5 * MINUTE,
    )?;
    let archive = downloads()?
        .pop()
        .context("apt-get download left no .deb in .tools/pkg")?;
    process::must(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&package),
        MINUTE,
    )?;
    for archive in downloads()? {
        fs::remove_file(archive)?;
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink("../pkg/usr/bin/promtool", &link)?;
    Ok(())
}

fn apt_install(packages: &[String], rights: Root) -> Result<()> {
    let install = || {
        let mut words = vec!["install", "-y", "--no-install-recommends"];
        words.extend(packages.iter().map(String::as_str));
        apt_get(&words, rights, 15 * MINUTE)
    };
    if !packages.iter().all(|package| apt_knows(package)) {
        apt_update(rights)?;
        return install();
    }
    // The lists may be older than the archive: packages they name may have been replaced.
    install().or_else(|_| apt_update(rights).and_then(|()| install()))
}

pub(super) fn apt_update(rights: Root) -> Result<()> {
    apt_get(&["update"], rights, 5 * MINUTE)
}

fn apt_get(words: &[&str], rights: Root, limit: Duration) -> Result<()> {
    let prefix = rights.prefix().context("needs root")?;
    // Through env, as sudo may not let a variable pass. Another apt is waited for.
    let mut all = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-qq",
        "-o",
        "DPkg::Lock::Timeout=120",
        "-o",
        "Dpkg::Use-Pty=0",
    ];
    all.extend(words);
    let mut cmd = process::command(&prefix, &all);
    // dpkg tells every package twice; what goes wrong comes on stderr.
    cmd.stdout(Stdio::null());
    process::must(&mut cmd, limit)
}
