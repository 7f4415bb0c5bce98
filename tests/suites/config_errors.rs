//! Bad files end to end: `sluice check` and `sluice run` refuse them with exit code 1 and say why.
//!
//! The many ways in which a file can be wrong are tested where files are read; here it is the binary that matters.

use anyhow::{Context, Result, ensure};
use lab::config::{File, socket};
use lab::daemon::run_cli;
use lab::{Family, Lab};

use crate::Suites;
use crate::setup::{HTTP, web};

pub fn add(suites: &mut Suites) {
    suites.case("config_errors", "check_and_run_refuse_bad_files", bad_files);
    suites.case("config_errors", "a_missing_file_is_named", missing_file);
    suites.case(
        "config_errors",
        "a_missing_interface_is_named",
        missing_interface,
    );
}

/// What is changed in a good file (from, to), and what the message must name.
const BAD: [(&str, &str, &[&str]); 7] = [
    ("forward  =", "foward   =", &["sluice.toml", "foward"]),
    (
        "\"203.0.113.10:80\"",
        "\"203.0.113.10\"",
        &["vip", "203.0.113.10"],
    ),
    (
        "\"203.0.113.10:80\"",
        "\"203.0.113.10:99999\"",
        &["vip", "99999"],
    ),
    (
        "address  = \"10.0.0.12\"",
        "address  = \"10.0.0.11\"",
        &["10.0.0.11"],
    ),
    ("weight   = 1\n", "weight   = -1\n", &["weight"]),
    (
        "protocol = \"tcp\"",
        "protocol = \"sctp\"",
        &["protocol", "sctp"],
    ),
    ("[node]\n", "[node\n", &["sluice.toml"]),
];

fn bad_files() -> Result<()> {
    let lab = Lab::builder().backends(2).build()?;
    let directory = lab.temporary_directory();
    let good = File::new(vec![web(&lab)]).text(&directory, &lab.pin_directory());
    let path = directory.join("sluice.toml");
    let file = path.to_str().context("the directory's name is no text")?;
    for (from, to, words) in BAD {
        ensure!(good.contains(from), "the good file has no {from:?}");
        std::fs::write(&path, good.replacen(from, to, 1))?;
        for verb in ["check", "run"] {
            run_cli(
                lab.balancer(),
                &socket(&directory),
                &[verb, "--config", file],
            )?
            .ensure(1, words)
            .with_context(|| format!("`sluice {verb}` with {to:?} instead of {from:?}"))?;
        }
    }
    ensure!(
        !lab.pin_directory().exists(),
        "a refused file left pins behind"
    );
    Ok(())
}

fn missing_file() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    for verb in ["check", "run"] {
        run_cli(
            lab.balancer(),
            &socket(&lab.temporary_directory()),
            &[verb, "--config", "/nowhere/sluice.toml"],
        )?
        .ensure(1, &["/nowhere/sluice.toml"])?;
    }
    Ok(())
}

fn missing_interface() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let directory = lab.temporary_directory();
    let path = directory.join("sluice.toml");
    let mut file = File::new(vec![web(&lab)]);
    file.interfaces = vec!["eth9"];
    std::fs::write(&path, file.text(&directory, &lab.pin_directory()))?;
    let path = path.to_str().context("the directory's name is no text")?;
    for verb in ["check", "run"] {
        run_cli(
            lab.balancer(),
            &socket(&directory),
            &[verb, "--config", path],
        )?
        .ensure(1, &["eth9"])?;
    }
    ensure!(
        lab.client().get(Family::V4.vip_port(HTTP)).is_err(),
        "nobody runs, yet the VIP answers"
    );
    Ok(())
}
