//! Verbs that change: what was typed arrives at the owner loop.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use lb_userspace::api::dto::{Changed, OverlayReset};

use crate::served::{MERGED, Served, overlay};
use crate::{SLUICE, command, done, json, sluice};

#[test]
fn changing_verbs_send_what_was_typed() {
    let served = Served::start();
    let cases: [(&[&str], &str); 13] = [
        (
            &["backend", "add", "web", "10.0.0.13"],
            "adds 10.0.0.13 to web, weight None",
        ),
        (
            &["backend", "add", "dns6", "[2001:db8::12]", "--weight", "5"],
            "adds 2001:db8::12 to dns6, weight Some(5)",
        ),
        (
            &[
                "backend",
                "add",
                "web",
                "10.0.0.14",
                "--replaces",
                "10.0.0.12",
            ],
            "adds 10.0.0.14 to web for 10.0.0.12, weight None",
        ),
        (
            &["backend", "remove", "web", "10.0.0.12"],
            "removes 10.0.0.12 from web",
        ),
        (
            &[
                "backend",
                "drain",
                "web",
                "10.0.0.12",
                "--reason",
                "kernel update",
            ],
            "makes 10.0.0.12 of web draining, reason Some(\"kernel update\")",
        ),
        (
            &[
                "backend",
                "drain",
                "web",
                "10.0.0.12",
                "--until-empty",
                "--timeout",
                "1h 500ms",
                "--no-wait",
            ],
            "draining, reason None, until DrainUntil { until_empty: true, timeout_seconds: Some(3601) }",
        ),
        (
            &["backend", "disable", "dns6", "[2001:db8::11]"],
            "makes 2001:db8::11 of dns6 disabled, reason None",
        ),
        (
            &[
                "backend",
                "activate",
                "dns6",
                "2001:db8::11",
                "--reason",
                "done",
            ],
            "makes 2001:db8::11 of dns6 active, reason Some(\"done\")",
        ),
        (
            &["backend", "weight", "web", "10.0.0.11", "0"],
            "gives 10.0.0.11 of web weight 0",
        ),
        (&["service", "remove", "dns6"], "removes service dns6"),
        (
            &["service", "add", "new", "203.0.113.20:80/tcp"],
            r#"adds service {"name":"new","protocol":"tcp","vip":"203.0.113.20:80"}"#,
        ),
        (
            &[
                "service",
                "add",
                "new6",
                "--vip",
                "[2001:db8::1]:*",
                "--protocol",
                "udp",
                "--forward",
                "l2",
                "--affinity",
                "client-ip",
                "--tracking",
                "off",
                "--flow-idle",
                "1h 30m",
                "--grace",
                "0s",
                "--hold-down",
                "90s",
                "--table-size",
                "4093",
                "--on-empty",
                "drop",
                "--health",
                "http",
                "--health-path",
                "/up",
                "--health-port",
                "8080",
                "--interval",
                "500ms",
                "--timeout",
                "250ms",
                "--rise",
                "1",
                "--fall",
                "2",
                "--backend",
                "[2001:db8::11]=3",
                "--backend",
                "2001:db8::12",
            ],
            concat!(
                r#"adds service {"affinity":"client-ip","backend":[{"address":"2001:db8::11","weight":3},"#,
                r#"{"address":"2001:db8::12"}],"flow_idle":"1h 30m","forward":"l2","grace":"0s","health":{"fall":2,"interval":"500ms","#,
                r#""kind":"http","path":"/up","port":8080,"rise":1,"timeout":"250ms"},"hold_down":"90s","name":"new6","#,
                r#""on_empty":"drop","protocol":"udp","table_size":4093,"tracking":"off","vip":"[2001:db8::1]:*"}"#
            ),
        ),
        (
            &["detach", "--config", "/nonexistent/sluice.toml"],
            "detached from eth0",
        ),
    ];
    for (arguments, expected) in cases {
        let text = done(&served.socket, arguments);
        let seen = served
            .seen
            .lock()
            .unwrap()
            .pop()
            .expect("a command arrived");
        assert!(seen.ends_with(expected), "{arguments:?}: {seen}");
        assert_eq!(
            text,
            format!("{seen}\n341 slots moved, 3 of them in excess\n"),
            "{arguments:?}"
        );
    }
    let arguments = ["backend", "weight", "web", "10.0.0.11", "7", "--json"];
    let changed: Changed = json(&served.socket, &arguments);
    assert_eq!((changed.changed, changed.slots_moved), (true, 341));
}

#[test]
fn reset_says_what_it_dropped() {
    let served = Served::start();
    let text = done(&served.socket, &["reset"]);
    for part in [
        "kernel update",
        "drops 2 run-time changes",
        "341 slots moved",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    let reset: OverlayReset = json(&served.socket, &["reset", "--json"]);
    assert_eq!(reset.dropped, overlay().differences);
    assert!(reset.changed.changed);
}

#[test]
fn save_prints_or_writes_the_merged_file() {
    let served = Served::start();
    assert_eq!(done(&served.socket, &["save"]), MERGED);
    let file = served.directory().join("sluice.toml");
    std::fs::write(&file, "# mine\n").unwrap();
    let text = done(&served.socket, &["save", "--to", file.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), MERGED);
    let old = served.directory().join("sluice.toml.old");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "# mine\n");
    for part in ["Comments are lost", old.to_str().unwrap(), "sluice reload"] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    let nowhere = served.directory().join("no/such/file");
    let said = sluice(&served.socket, &["save", "--to", nowhere.to_str().unwrap()]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("no/such/file"), "{}", said.stderr);
}

#[test]
fn a_service_comes_from_a_file_or_from_stdin() {
    let served = Served::start();
    let text = r#"{"name": "j", "vip": "203.0.113.30:80", "protocol": "tcp"}"#;
    let expected = r#"adds service {"name":"j","protocol":"tcp","vip":"203.0.113.30:80"}"#;
    let file = served.directory().join("service.json");
    std::fs::write(&file, text).unwrap();
    let from_file = ["service", "add", "--from-json", file.to_str().unwrap()];
    assert!(done(&served.socket, &from_file).contains(expected));

    let mut child: Child = command(
        SLUICE,
        &served.socket,
        &["service", "add", "--from-json", "-"],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let mut stdout = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(stdout.contains(expected), "{stdout}");

    std::fs::write(&file, "[1]").unwrap();
    let said = sluice(&served.socket, &from_file);
    assert_eq!(said.code, 1);
    assert!(
        said.stderr.contains("expected one object"),
        "{}",
        said.stderr
    );
}
