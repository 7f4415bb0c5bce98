//! Verbs that ask: tables for people, JSON for programs.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use lb_userspace::api::dto::*;

use crate::served::{self, Served};
use crate::{SLUICE, command, done, json};

#[test]
fn status_is_an_overview_for_people() {
    let served = Served::start();
    assert_eq!(
        done(&served.socket, &["status"]),
        "\
sluice 0.1.0, pid 812, running for 3h 12m, ready
configuration /etc/sluice/sluice.toml, loaded 2025-10-09 08:53:20 UTC

INTERFACE  XDP      ASKED  NOTE
eth0       native   auto
eth1       generic  auto   the driver e1000e has no native XDP

SERVICE  VIP                    FORWARD  ELIGIBLE  SLOTS  LEARN  RESIDUE   FLOWS    PACKETS      BYTES  ORIGIN
web      203.0.113.10:80/tcp    ipip          1/2  1,021     80       20  54,321  1,234,567  941.9 MiB  file
dns6     [2001:db8::53]:53/udp  l2            1/1  1,021      0        0      12         12      960 B  runtime

TRACKING          NOW  SHARE  DETAIL
slots in change   100  4.9 %  1,942 steady, 80 learn, 20 residue
flows remembered  313  0.0 %  2 syn, 10 learnt, 300 established, 1 closed
failed pins         7         openers that found the flow table full
lost learning       0         other flows that did

VERDICT  REASON        PACKETS  MEANING
forward  forwarded   1,234,579  sent to a backend
pass     no-service         42  not for a VIP: left to the host

CAPACITY   USED      LIMIT  SHARE
slots     2,042  4,194,304  0.0 %
"
    );
}

#[test]
fn what_needs_attention_comes_first() {
    let status = Status {
        ready: false,
        not_ready: vec!["eth1: not attached".to_owned()],
        config_error: Some("sluice.toml:3: unknown key `prot`\n  did you mean `port`?".to_owned()),
        ..served::status()
    };
    let served = Served::with_status(status);
    let text = done(&served.socket, &["status"]);
    let expected = "\
NOT READY
  eth1: not attached

CONFIGURATION REFUSED: the state loaded before keeps running
  sluice.toml:3: unknown key `prot`
    did you mean `port`?

sluice 0.1.0, pid 812, running for 3h 12m, not ready
";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn reading_verbs_print_tables() {
    let served = Served::start();
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["service", "list"],
            &[
                "SERVICE",
                "203.0.113.10:80/tcp",
                "[2001:db8::53]:53/udp",
                "1/2",
                "941.9 MiB",
            ],
        ),
        (
            &["service", "show", "web"],
            &[
                "answers for   203.0.113.10:80/tcp",
                "health        http GET /healthz port 8080 every 2s",
                "lookup table  1,021 slots (921 steady, 80 learn, 20 residue), digest 9f86d081884c7d65",
                "312 flows remembered, and those of 80 slots that have not spoken since",
                "100.0 %",
                "through eth0 via 02:00:00:00:00:01, mtu 1500",
                "made draining by alice at 2025-10-09 09:01:40 UTC (kernel update)",
                "down for 1m 15s: connection refused",
            ],
        ),
        (
            &["backend", "list"],
            &[
                "10.0.0.11",
                "10.0.0.12",
                "2001:db8::11",
                "draining: kernel update",
                "LEFT",
                "≥ 312",
                "unknown",
            ],
        ),
        (&["backend", "list", "dns6"], &["2001:db8::11"]),
    ];
    for (arguments, parts) in cases {
        let text = done(&served.socket, arguments);
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {part} not in\n{text}");
        }
        assert!(!text.contains('\x1b'), "no colours in a pipe: {text:?}");
    }
    assert!(!done(&served.socket, &["backend", "list", "dns6"]).contains("10.0.0.11"));
}

#[test]
fn reading_verbs_print_the_schema_of_the_socket() {
    let served = Served::start();
    let socket = &served.socket;
    assert_eq!(
        json::<Status>(socket, &["status", "--json"]),
        served::status()
    );
    assert_eq!(
        json::<Vec<ServiceSummary>>(socket, &["service", "list", "--json"]),
        served::status().services
    );
    let web: ServiceDetail = json(socket, &["service", "--json", "show", "web"]);
    assert_eq!(web.backends.len(), 2);
    assert_eq!(
        json::<Vec<BackendDetail>>(socket, &["backend", "list", "--json"]),
        served::all_backends()
    );
}

#[test]
fn diff_is_a_table_and_json() {
    let served = Served::start();
    assert_eq!(
        done(&served.socket, &["diff"]),
        "\
SERVICE  BACKEND    WHAT           FILE    NOW                    BY     AT                       REASON
dns6                service added          [2001:db8::53]:53/udp  alice  2025-10-09 09:01:40 UTC
web      10.0.0.12  state          active  draining               alice  2025-10-09 09:01:40 UTC  kernel update
"
    );
    let diff: OverlayDiff = json(&served.socket, &["diff", "--json"]);
    assert_eq!(diff, served::overlay());
}

#[test]
fn completions_know_the_verbs() {
    let script = done(Path::new("/nonexistent"), &["completions", "bash"]);
    for verb in ["status", "backend", "drain", "detach"] {
        assert!(script.contains(verb), "{verb}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let served = Served::start();
    let mut child = command(SLUICE, &served.socket, &["status"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe closes before the answer is written.
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(
        (child.wait().unwrap().code(), stderr.as_str()),
        (Some(0), "")
    );
}
