//! The data path against golden packets: verdict, reason, bytes and counters, natively and in the kernel (BPF_PROG_TEST_RUN),
//! which must agree with what is written here and with each other.
//!
//! Nothing is sent anywhere: test runs end with the verdict. The kernel's half runs in a network namespace of its own, which holds
//! loopback and a pair of idle virtual interfaces and is gone with the process.

mod cases;
mod decap;
mod flows;
mod frame;
mod objects;
mod outer;
mod run;
mod storm;
mod world;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    if root
        && !arguments.list
        && let Err(error) = enter_namespace()
    {
        eprintln!("the tests need a network namespace of their own: {error:#}");
        std::process::exit(1);
    }
    let mut trials = cases::trials();
    trials.extend(flows::trials());
    trials.extend(storm::trials());
    trials.extend(objects::trials());
    trials.extend(decap::trials());
    let trials = trials.into_iter().map(|trial| {
        let skip = !root && trial.name().ends_with(NEEDS_ROOT);
        trial.with_ignored_flag(skip)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// How the names of tests end that load something into the kernel.
const NEEDS_ROOT: &str = "[needs root]";

/// A test of lb-common as it runs natively, or of the ELF files.
fn native(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(format!("native: {name}"), move || test().map_err(failed))
}

/// A test of the programs in the kernel; ignored for people other than root.
fn kernel(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(format!("kernel: {name} {NEEDS_ROOT}"), move || {
        test().map_err(failed)
    })
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// Before any thread is started, so that all of them are inside.
fn enter_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    let status = Command::new("ip")
        .args([
            "link", "add", "golden0", "type", "veth", "peer", "name", "golden1",
        ])
        .status()
        .context("ip (package iproute2)")?;
    ensure!(status.success(), "`ip link add golden0 type veth` failed");
    let index = nix::net::if_::if_nametoindex("golden0").context("index of golden0")?;
    run::OTHER.set(index).expect("set once");
    Ok(())
}
