//! `cargo xtask setup`: finds what building and testing need, and installs what this machine lacks.
//!
//! Owns the list of needs and how each is met. Which toolchain compiles the BPF objects is decided by `toolchain`, the
//! build script's own rule. A C linker is not on the list: without one, xtask itself could not have been built.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, Root},
    toolchain::{self, LINKER, LINKER_VERSION},
    workspace,
};

/// The LLVM of Debian's rustc-web.
const DEBIAN_LLVM: u32 = 22;
const DEBIAN_TOOLCHAIN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Programs the laboratory starts, and the packages that have them.
const LAB_PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("ethtool", "ethtool")];
const BPFFS: &str = "/sys/fs/bpf";

const MINUTE: Duration = Duration::from_secs(60);

/// What was found on this machine.
#[derive(Clone, Debug)]
struct Facts {
    /// The LLVM version of the compiler the build will use; `None` without a usable compiler.
    llvm: Option<u32>,
    linker: bool,
    /// apt-get exists.
    apt: bool,
    /// apt knows Debian's packages for the BPF target (asked only when something for the build is missing).
    debian_toolchain: bool,
    rustup: bool,
    binstall: bool,
    /// Versions of LLVM whose development files are installed.
    llvm_dev: Vec<u32>,
    missing_programs: Vec<&'static str>,
    promtool: bool,
    bpffs: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
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
    fn needs_root(&self) -> bool {
        matches!(self, Step::Apt(_) | Step::MountBpffs)
    }

    /// Without the others a build still works; only the laboratory doesn't.
    fn is_for_build(&self, facts: &Facts) -> bool {
        match self {
            Step::Apt(_) => facts.llvm.is_none() || !facts.linker,
            Step::Nightly | Step::BuildLinker(_) | Step::BinstallLinker => true,
            Step::Promtool | Step::MountBpffs => false,
        }
    }

    fn describe(&self) -> String {
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
    fn by_hand(&self) -> String {
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
fn plan(facts: &Facts) -> Result<Vec<Step>, String> {
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

/// Installs what is missing. Fails when a build would; what only the laboratory lacks is reported.
pub fn run() -> Result<()> {
    process::forward_signals();
    let started = Instant::now();
    let root = workspace::root();
    let mut facts = gather(&root);
    let rights = Root::detect();
    // A fresh machine or container has no package lists at all.
    if lacks_lists(&facts) {
        if rights == Root::No {
            // The commands printed below begin with apt-get update.
            facts.debian_toolchain = true;
        } else {
            timed("package lists", || apt_update(rights))?;
            facts = gather(&root);
        }
    }
    let steps = plan(&facts).map_err(anyhow::Error::msg)?;
    if steps.is_empty() {
        eprintln!(
            "setup: nothing is missing ({:.1} s)",
            started.elapsed().as_secs_f32()
        );
        return Ok(());
    }
    if rights == Root::No {
        refuse_what_needs_root(&facts, &steps)?;
    }
    for step in &steps {
        if step.needs_root() && rights == Root::No {
            continue;
        }
        let result = timed(&step.describe(), || perform(step, &root, rights));
        match result {
            Ok(()) => {}
            Err(error) if step.is_for_build(&facts) => {
                return Err(error.context(format!(
                    "setup could not install {}; by hand: {}",
                    step.describe(),
                    step.by_hand()
                )));
            }
            Err(error) => eprintln!(
                "setup: without {} some tests will be skipped or fail: {error:#}\n       by hand: {}",
                step.describe(),
                step.by_hand()
            ),
        }
    }
    // What was installed must be what the build looks for.
    toolchain::find().map_err(anyhow::Error::msg)?;
    toolchain::find_linker(&root).map_err(anyhow::Error::msg)?;
    eprintln!("setup: done ({:.1} s)", started.elapsed().as_secs_f32());
    Ok(())
}

/// Reports without changing anything; true when nothing is missing.
pub fn check() -> Result<bool> {
    let root = workspace::root();
    let mut facts = gather(&root);
    // Without package lists apt knows nothing yet; setup would fetch them first.
    facts.debian_toolchain |= lacks_lists(&facts);
    match toolchain::find() {
        Ok(found) => println!("ok       BPF compiler: {}", found.describe()),
        Err(_) => println!("missing  BPF compiler"),
    }
    let row = |present: bool, what: &str| {
        println!("{}  {what}", if present { "ok     " } else { "missing" })
    };
    row(facts.linker, LINKER);
    for (program, package) in LAB_PROGRAMS {
        row(!facts.missing_programs.contains(&package), program);
    }
    row(facts.promtool, "promtool");
    row(facts.bpffs, &format!("BPF file system on {BPFFS}"));
    let steps = plan(&facts).map_err(anyhow::Error::msg)?;
    for step in &steps {
        println!(
            "setup would install {}: {}",
            step.describe(),
            step.by_hand()
        );
    }
    Ok(steps.is_empty())
}

/// An unprivileged person can still build when only the laboratory's needs are open.
fn refuse_what_needs_root(facts: &Facts, steps: &[Step]) -> Result<()> {
    let commands: Vec<_> = steps
        .iter()
        .filter(|step| step.needs_root())
        .map(|step| step.by_hand())
        .collect();
    if commands.is_empty() {
        return Ok(());
    }
    let commands = commands.join("\n    ");
    if steps
        .iter()
        .any(|step| step.needs_root() && step.is_for_build(facts))
    {
        bail!(
            "setup has to install packages, and neither is this root nor does sudo work without a password. As root:\n    {commands}\nthen run `cargo xtask setup` again"
        );
    }
    eprintln!("setup: the laboratory needs what only root can install:\n    {commands}");
    Ok(())
}

fn gather(root: &Path) -> Facts {
    let in_path = |program: &str| in_path(root, program);
    let apt = in_path("apt-get");
    let llvm = toolchain::find()
        .ok()
        .and_then(|found| llvm_of(&mut found.command("rustc")));
    // A linker whose libLLVM is gone can't start, and has to be made again.
    let linker = toolchain::find_linker(root)
        .is_ok_and(|linker| process::ask(linker, &["--version"]).is_some());
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

fn perform(step: &Step, root: &Path, rights: Root) -> Result<()> {
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

fn apt_update(rights: Root) -> Result<()> {
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

fn apt_knows(package: &str) -> bool {
    process::ask("apt-cache", &["show", "--no-all-versions", package])
        .is_some_and(|text| !text.trim().is_empty())
}

/// On a Debian whose packages for the BPF target are needed, but not known to apt.
fn lacks_lists(facts: &Facts) -> bool {
    let for_build = facts.llvm.is_none() || !facts.linker;
    for_build && facts.apt && !facts.debian_toolchain && on_debian()
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

fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn llvm_of(rustc: &mut Command) -> Option<u32> {
    let output = rustc.arg("-vV").output().ok()?;
    llvm_version(&String::from_utf8(output.stdout).ok()?)
}

fn llvm_version(rustc_verbose: &str) -> Option<u32> {
    let version = rustc_verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    })
}

fn timed(what: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("setup: {what} …");
    let started = Instant::now();
    let result = step();
    let end = if result.is_ok() {
        "installed"
    } else {
        "failed"
    };
    eprintln!(
        "setup: {what}: {end} ({:.1} s)",
        started.elapsed().as_secs_f32()
    );
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
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
            ..nightly
        })
        .unwrap_err();
        assert!(message.contains("cargo binstall bpf-linker"), "{message}");
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

    #[test]
    fn packages_for_the_laboratory_alone_do_not_stop_a_build() {
        let facts = Facts {
            missing_programs: vec!["ethtool"],
            ..complete()
        };
        let steps = plan(&facts).unwrap();
        assert!(refuse_what_needs_root(&facts, &steps).is_ok());
        let facts = Facts {
            llvm: None,
            ..facts
        };
        let message = refuse_what_needs_root(&facts, &plan(&facts).unwrap())
            .unwrap_err()
            .to_string();
        assert!(message.contains("apt-get install"), "{message}");
    }

    #[test]
    fn only_a_bpf_mount_on_its_place_counts() {
        assert!(has_bpffs(
            "sysfs /sys/fs/bpf sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!has_bpffs(
            "bpf /run/bpf bpf rw 0 0\nsysfs /sys/fs/bpf sysfs rw 0 0\n"
        ));
    }

    #[test]
    fn llvm_version_is_read_from_rustc() {
        assert_eq!(
            llvm_version("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"),
            Some(22)
        );
        assert_eq!(llvm_version("rustc 1.96.0\n"), None);
    }

    mod choice {
        use std::path::PathBuf;

        use crate::toolchain::{Core, Launch, choose};

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
}
