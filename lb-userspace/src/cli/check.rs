//! `sluice check`: is the file right, and would traffic flow on this host?

use clap::Args;

use super::output::{Style, Tone};
use super::{ConfigPath, EXIT_FAILED, Failure, Json, output, wait};
use crate::check::{self, Finding, Severity};
use crate::config;

/// Check the configuration and this host: kernel, drivers, MTU, rp_filter, next hops
///
/// Needs no daemon and changes nothing. Each finding comes with what mends it. Exit code 1 if there is any error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice check
  sluice check --config ./sluice.toml
  sluice check --json | jq '.[] | select(.severity != \"ok\")'")]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    json: Json,
}

pub fn run(args: CheckArgs) -> Result<(), Failure> {
    let path = &args.config.config;
    let (findings, broken) = match config::load(path) {
        Ok(config) => (wait(check::run(&config))?, None),
        Err(error) => {
            let finding = Finding {
                severity: Severity::Error,
                what: format!("configuration {}", path.display()),
                found: error.to_string(),
                mend: "correct the file".to_owned(),
            };
            (vec![finding], Some(error))
        }
    };
    if args.json.json {
        output::print_json(&findings)?;
    } else if let Some(error) = broken {
        // The error shows the line and what to write instead; a table would only tear it apart.
        return Err(anyhow::anyhow!("{error}").into());
    } else {
        output::print(&render(&findings, Style::stdout()))?;
    }
    if findings.iter().any(|f| f.severity == Severity::Error) {
        return Err(Failure {
            code: EXIT_FAILED,
            message: String::new(),
        });
    }
    Ok(())
}

/// One line per finding, its mend below it, the worst last, where the eye is when the output ends.
fn render(findings: &[Finding], style: Style) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let mut text = String::new();
    for finding in sorted {
        let (mark, tone) = match finding.severity {
            Severity::Ok => ("ok     ", Tone::Good),
            Severity::Warning => ("warning", Tone::Doubtful),
            Severity::Error => ("error  ", Tone::Bad),
        };
        let found = finding.found.replace('\n', "\n         ");
        let mark = style.paint(mark, tone);
        text.push_str(&format!("{mark}  {}: {found}\n", finding.what));
        if !finding.mend.is_empty() {
            let mend = finding.mend.replace('\n', "\n               ");
            text.push_str(&format!("         mend: {mend}\n"));
        }
    }
    let number = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (number(Severity::Error), number(Severity::Warning));
    text.push_str(&match (errors, warnings) {
        (0, 0) => format!("all well: {} things looked at\n", findings.len()),
        _ => format!("errors: {errors}, warnings: {warnings}\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, what: &str, found: &str, mend: &str) -> Finding {
        Finding {
            severity,
            what: what.to_owned(),
            found: found.to_owned(),
            mend: mend.to_owned(),
        }
    }

    #[test]
    fn the_worst_stands_last_with_its_mend() {
        let findings = [
            finding(
                Severity::Error,
                "eth1",
                "no such interface",
                "ip link add eth1 …",
            ),
            finding(Severity::Ok, "kernel", "6.18", ""),
            finding(
                Severity::Warning,
                "eth0: rp_filter",
                "strict",
                "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
            ),
        ];
        assert_eq!(
            render(&findings, Style { colour: false }),
            "ok       kernel: 6.18\n\
             warning  eth0: rp_filter: strict\n         mend: sysctl -w net.ipv4.conf.eth0.rp_filter=2\n\
             error    eth1: no such interface\n         mend: ip link add eth1 …\n\
             errors: 1, warnings: 1\n"
        );
        assert!(
            render(&findings[1..2], Style { colour: false })
                .ends_with("all well: 1 things looked at\n")
        );
    }
}
