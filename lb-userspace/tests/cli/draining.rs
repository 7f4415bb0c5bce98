//! Drains that end by themselves: what somebody who waits for one sees.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use lb_userspace::api::dto::{BackendAdmin, Drained};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::served::Served;
use crate::{SLUICE, command, done, json, sluice};

const UNTIL_EMPTY: [&str; 5] = ["backend", "drain", "web", "10.0.0.11", "--until-empty"];

#[test]
fn it_shows_what_is_left_and_how_it_ended() {
    let served = Served::start();
    let text = done(&served.socket, &UNTIL_EMPTY);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[1..],
        [
            "341 slots moved, 3 of them in excess",
            "≥ 8 flows left; ends when empty",
            "backend 10.0.0.11 of \"web\" is disabled: drained: no flows left",
        ],
        "{text}"
    );
    let arguments = [&UNTIL_EMPTY[..], &["--timeout", "10m", "--json"]].concat();
    let drained: Drained = json(&served.socket, &arguments);
    assert!(drained.changed.message.ends_with("no flows left"));
    assert_eq!(drained.changed.slots_moved, 341);
    assert_eq!(drained.backend.admin, BackendAdmin::Disabled);
}

#[test]
fn one_that_somebody_cancels_is_a_failure() {
    let served = Served::start();
    let arguments = [&UNTIL_EMPTY[..], &["--reason", "cancelled"]].concat();
    let said = sluice(&served.socket, &arguments);
    assert_eq!(said.code, 1, "{}", said.stdout);
    assert_eq!(
        said.stderr,
        "error: the drain was cut short: backend 10.0.0.11 of \"web\" is active, by bob\n"
    );
}

#[test]
fn whoever_does_not_wait_is_told_that_it_goes_on() {
    let served = Served::start();
    let arguments = ["backend", "drain", "web", "10.0.0.11", "--timeout", "1h"];
    let mut child: Child = command(SLUICE, &served.socket, &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("≥ 8 flows left; ends in 1h") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let list = done(&served.socket, &["backend", "list", "web"]);
    assert!(list.contains("ends in 1h"), "{list}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    for part in ["the drain goes on", "sluice backend activate web 10.0.0.11"] {
        assert!(stderr.contains(part), "{part} not in\n{stderr}");
    }
}
