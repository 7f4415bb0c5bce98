//! `cargo xtask setup`: finds what building and testing need, and installs what this machine lacks.
//!
//! Owns the list of needs and how each is met. Which toolchain compiles the BPF objects is decided by `toolchain`, the
//! build script's own rule. A C linker is not on the list: without one, xtask itself could not have been built.

mod install;
mod machine;
mod plan;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    process::{self, Root},
    toolchain::{self, LINKER},
    workspace,
};
use install::{apt_update, perform};
use machine::{gather, lacks_lists};
use plan::{BPFFS, Facts, LAB_PROGRAMS, Step, plan};

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
    toolchain::find(&root).map_err(anyhow::Error::msg)?;
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
    match toolchain::find(&root) {
        Ok(found) => println!("ok       BPF compiler: {}", found.describe()),
        // One that only lacks a linker is not missing.
        Err(_) if facts.llvm.is_some() => {}
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
    use super::{plan::tests::complete, *};

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
}
