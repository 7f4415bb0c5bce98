//! `cargo xtask test` and `ci`: every check as a step of its own, all of them run whatever fails, one summary.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    process::{self, Root},
    rebuilt, setup,
    totals::Totals,
    workspace::Workspace,
};

const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
const STEP_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The laboratory waits for real probes and time-outs.
const LAB_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The package whose tests run on the laboratory.
const LAB_PACKAGE: &str = "lb-tests";

/// What one step came to.
struct Outcome {
    name: String,
    totals: Totals,
    took: Duration,
    /// Why the step itself is bad, beyond tests that failed.
    trouble: Option<String>,
}

/// All steps so far; every step is run and shown through it.
#[derive(Default)]
struct Report {
    outcomes: Vec<Outcome>,
}

impl Report {
    /// Runs one step whose output is shown and counted. True when it ended well.
    fn step(&mut self, name: &str, what: &str, cmd: &mut Command, limit: Duration) -> bool {
        println!("\n==> {name}: {what}");
        let started = Instant::now();
        let mut totals = Totals::default();
        let result = process::stream(cmd, limit, |line| {
            println!("{line}");
            totals.read(line);
        });
        let trouble = match result {
            Ok(status) if status.success() || totals.failed > 0 => None,
            Ok(status) => Some(format!(
                "`{}` ended badly ({status}) without a failed test",
                process::show(cmd)
            )),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(trouble) = &trouble {
            println!("{name}: {trouble}");
        }
        let took = started.elapsed();
        println!(
            "<== {name}: {} ({:.1} s)",
            totals.closing_line(),
            took.as_secs_f32()
        );
        let good = trouble.is_none() && totals.failed == 0;
        self.outcomes.push(Outcome {
            name: name.to_owned(),
            totals,
            took,
            trouble,
        });
        good
    }

    /// Notes a step that could not even be started.
    fn not_started(&mut self, name: &str, error: &anyhow::Error) {
        let trouble = format!("{error:#}");
        println!("\n==> {name}: {trouble}");
        self.outcomes.push(Outcome {
            name: name.to_owned(),
            totals: Totals::default(),
            took: Duration::ZERO,
            trouble: Some(trouble),
        });
    }

    fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for outcome in &self.outcomes {
            sum += outcome.totals.clone();
            // A step that broke before or beside its tests counts as one failure: the last line must never say 0
            // failed when something did.
            sum.failed += u64::from(outcome.trouble.is_some());
        }
        sum
    }

    /// Prints the table and, last, the line others parse. True when all is well.
    fn finish(self) -> bool {
        println!("\n{}", self.table());
        let totals = self.totals();
        for (title, names) in [
            ("skipped", &totals.skipped_names),
            ("failed", &totals.failed_names),
        ] {
            if !names.is_empty() {
                println!("{title}:\n  {}", names.join("\n  "));
            }
        }
        for outcome in &self.outcomes {
            if let Some(trouble) = &outcome.trouble {
                println!("{}: {trouble}", outcome.name);
            }
        }
        println!("{}", totals.closing_line());
        totals.failed == 0
    }

    fn table(&self) -> String {
        let width = self
            .outcomes
            .iter()
            .map(|outcome| outcome.name.len())
            .max()
            .unwrap_or(0)
            .max(4);
        let mut table = format!(
            "{:width$}  {:>7} {:>7} {:>7} {:>9}",
            "step", "passed", "failed", "skipped", "seconds"
        );
        for Outcome {
            name,
            totals,
            took,
            trouble,
        } in &self.outcomes
        {
            let end = if trouble.is_some() {
                "  ended badly"
            } else {
                ""
            };
            let Totals {
                passed,
                failed,
                skipped,
                ..
            } = totals;
            let seconds = took.as_secs_f32();
            table += &format!(
                "\n{name:width$}  {passed:>7} {failed:>7} {skipped:>7} {seconds:>9.1}{end}"
            );
        }
        table
    }
}

/// True when everything passed.
pub fn test(filter: Option<&str>) -> Result<bool> {
    setup::run()?;
    let mut report = Report::default();
    tests(&mut report, &Workspace::find()?, filter);
    Ok(report.finish())
}

pub fn ci() -> Result<bool> {
    setup::run()?;
    let workspace = Workspace::find()?;
    let mut report = Report::default();
    report.step(
        "format",
        "cargo fmt --check",
        &mut workspace.cargo(&["fmt", "--all", "--check"]),
        STEP_LIMIT,
    );
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    report.step(
        "clippy",
        "no warnings",
        &mut workspace.cargo(&clippy),
        BUILD_LIMIT,
    );
    tests(&mut report, &workspace, None);
    Ok(report.finish())
}

fn tests(report: &mut Report, workspace: &Workspace, filter: Option<&str>) {
    let rights = Root::detect();
    match rights {
        Root::Is => {}
        Root::Sudo => {
            println!("Not root: the laboratory's tests run through sudo, the others as they are.")
        }
        Root::No => println!(
            "Not root, and sudo needs a password: tests that need root are skipped. `sudo -E cargo xtask test`, or \
             the VM of vagrant/README.md, runs them all."
        ),
    }
    // The laboratory starts the daemon's binary, which cargo test does not promise to build.
    let built = report.step(
        "build",
        "the binaries the tests start",
        &mut workspace.cargo(&["build", "--workspace", "--locked"]),
        BUILD_LIMIT,
    ) && report.step(
        "build tests",
        "every test binary",
        &mut workspace.cargo(&["test", "--workspace", "--locked", "--no-run"]),
        BUILD_LIMIT,
    );
    if !built {
        return;
    }

    let rebuilt = match rebuilt::prepare(workspace) {
        Ok((mut cmd, object)) => report
            .step(
                "rebuilt",
                "a data path to upgrade to",
                &mut cmd,
                BUILD_LIMIT,
            )
            .then_some(object),
        Err(error) => {
            report.not_started("rebuilt", &error);
            None
        }
    };

    let mut variables = vec![("SLUICE_BIN", workspace.binary(false, "sluice"))];
    variables.extend(rebuilt.map(|object| (rebuilt::OBJECT_VAR, object)));
    let run = |args: &[&str]| {
        let mut cmd = workspace.cargo(&["test", "--locked", "--no-fail-fast"]);
        cmd.args(args).args(filter).envs(variables.clone());
        cmd
    };
    let steps: [(&str, &str, &[&str]); 2] = [
        (
            "unit",
            "unit and property tests",
            &["--workspace", "--lib", "--bins"],
        ),
        (
            "doc",
            "examples in the documentation",
            &["--workspace", "--doc"],
        ),
    ];
    for (name, what, args) in steps {
        if process::interrupted() {
            return;
        }
        report.step(name, what, &mut run(args), STEP_LIMIT);
    }
    for target in &workspace.tests {
        if process::interrupted() {
            return;
        }
        let mut cmd = run(&["--package", &target.package, "--test", &target.name]);
        let (what, limit) = if target.package == LAB_PACKAGE {
            if let (Root::Sudo, Some(runner)) = (rights, runner_variable()) {
                // Our signals don't reach what sudo started; timeout, running as root beside it, can end it.
                let mut words = rights.prefix().unwrap_or_default();
                words.extend(
                    variables
                        .iter()
                        .map(|(name, path)| format!("{name}={}", path.display())),
                );
                words.extend(["timeout", "--kill-after=5"].map(str::to_owned));
                words.push(LAB_LIMIT.as_secs().to_string());
                cmd.env(runner, words.join(" "));
            }
            ("on the laboratory", LAB_LIMIT + Duration::from_secs(60))
        } else {
            ("integration tests", STEP_LIMIT)
        };
        report.step(&target.name, what, &mut cmd, limit);
    }
    if report.totals().is_empty() {
        report.outcomes.push(Outcome {
            name: "all".to_owned(),
            totals: Totals::default(),
            took: Duration::ZERO,
            trouble: Some(format!(
                "no test's name contains `{}`",
                filter.unwrap_or_default()
            )),
        });
    }
}

/// The variable by which cargo is told what to start test binaries with.
fn runner_variable() -> Option<String> {
    let version = process::ask("rustc", &["-vV"])?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))?;
    Some(format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace(['-', '.'], "_")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(report: &mut Report, script: &str) -> bool {
        report.step(
            "s",
            "a script",
            Command::new("sh").args(["-c", script]),
            Duration::from_secs(10),
        )
    }

    const ONE_BAD: &str = "echo 'test result: FAILED. 2 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out'; exit 101";
    const GOOD: &str =
        "echo 'test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'";

    #[test]
    fn steps_add_up() {
        let mut report = Report::default();
        assert!(!shell(&mut report, ONE_BAD));
        assert!(shell(&mut report, GOOD));
        assert_eq!(
            report.totals().closing_line(),
            "7 passed, 1 failed, 3 skipped"
        );
    }

    #[test]
    fn a_step_that_breaks_without_a_failed_test_is_a_failure() {
        let mut report = Report::default();
        assert!(!shell(&mut report, &format!("{GOOD}; kill -SEGV $$")));
        assert_eq!(
            report.totals().closing_line(),
            "5 passed, 1 failed, 0 skipped"
        );
        assert!(report.table().contains("ended badly"));
        assert!(!report.finish());
    }

    #[test]
    fn the_runner_variable_names_this_host() {
        let name = runner_variable().unwrap();
        assert!(
            name.starts_with("CARGO_TARGET_") && name.ends_with("_RUNNER") && !name.contains('-'),
            "{name}"
        );
    }
}
