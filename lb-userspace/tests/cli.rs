//! The built binary against a served socket: what it prints, and with which code it exits.

mod served;

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use lb_userspace::api::dto::*;
use lb_userspace::check::Finding;
use served::Served;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

fn command(program: impl AsRef<std::ffi::OsStr>, socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("SLUICE_SOCKET", socket)
        .stdin(Stdio::null());
    command
}

/// What was printed, and the exit code.
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal ended it"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn sluice(socket: &Path, arguments: &[&str]) -> Said {
    command(SLUICE, socket, arguments).output().unwrap().into()
}

/// Runs it, expects success and silence on stderr, and returns stdout.
fn done(socket: &Path, arguments: &[&str]) -> String {
    let said = sluice(socket, arguments);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{arguments:?}");
    said.stdout
}

fn json<T: serde::de::DeserializeOwned>(socket: &Path, arguments: &[&str]) -> T {
    let text = done(socket, arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {text}"))
}

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

SERVICE  VIP                    FORWARD  ELIGIBLE  SLOTS   FLOWS    PACKETS      BYTES  ORIGIN
web      203.0.113.10:80/tcp    ipip          1/2  1,021  54,321  1,234,567  941.9 MiB  file
dns6     [2001:db8::53]:53/udp  l2            1/1  1,021      12         12      960 B  runtime

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
                "lookup table  1,021 slots, digest 9f86d081884c7d65",
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
fn changing_verbs_send_what_was_typed() {
    let served = Served::start();
    let cases: [(&[&str], &str); 11] = [
        (
            &["backend", "add", "web", "10.0.0.13"],
            "adds 10.0.0.13 to web, weight None",
        ),
        (
            &["backend", "add", "dns6", "[2001:db8::12]", "--weight", "5"],
            "adds 2001:db8::12 to dns6, weight Some(5)",
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
                r#"{"address":"2001:db8::12"}],"forward":"l2","health":{"fall":2,"interval":"500ms","#,
                r#""kind":"http","path":"/up","port":8080,"rise":1,"timeout":"250ms"},"name":"new6","#,
                r#""on_empty":"drop","protocol":"udp","table_size":4093,"vip":"[2001:db8::1]:*"}"#
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

#[test]
fn what_the_daemon_refuses_exits_with_1_and_its_words() {
    let served = Served::start();
    let cases: [(&[&str], &str); 4] = [
        (
            &["service", "show", "nope"],
            "error: no service nope; there are: web, dns6\n",
        ),
        (
            &["backend", "drain", "web", "10.9.9.9"],
            "error: service web has no backend 10.9.9.9\n",
        ),
        (
            &["service", "add", "web", "203.0.113.10:80/tcp"],
            "error: service web exists\n",
        ),
        (
            &["reload"],
            "error: /etc/sluice/sluice.toml:3: unknown key\n",
        ),
    ];
    for (arguments, expected) in cases {
        let said = sluice(&served.socket, arguments);
        assert_eq!(
            (said.code, said.stderr.as_str()),
            (1, expected),
            "{arguments:?}"
        );
        assert_eq!(said.stdout, "");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_right() {
    let served = Served::start();
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage: sluice"),
        (&["stauts"], "'status'"),
        (&["backend", "drain", "web"], "<ADDRESS>"),
        (
            &["backend", "drain", "web", "ten"],
            "`ten` is not an IP address",
        ),
        (
            &["backend", "weight", "web", "10.0.0.11", "1001"],
            "0..=1000",
        ),
        (&["service", "add", "x"], "VIP:PORT/PROTO"),
        (
            &["service", "add", "x", "203.0.113.10:80"],
            "name the protocol",
        ),
        (
            &[
                "service",
                "add",
                "x",
                "203.0.113.10:80/tcp",
                "--protocol",
                "udp",
            ],
            "leave one out",
        ),
        (
            &["service", "add", "x", "2001:db8::1:443/tcp"],
            "has no port",
        ),
        (
            &["service", "add", "x", "203.0.113.10:80/tcp", "--rise", "2"],
            "--health",
        ),
        (
            &[
                "service",
                "add",
                "x",
                "203.0.113.10:80/tcp",
                "--health",
                "tcp",
                "--interval",
                "2",
            ],
            "write for example 2s",
        ),
        (
            &["service", "add", "x", "--from-json", "-"],
            "cannot be used with",
        ),
    ];
    for (arguments, part) in cases {
        let said = sluice(&served.socket, arguments);
        assert_eq!(said.code, 2, "{arguments:?}: {}", said.stderr);
        assert!(
            said.stderr.contains(part),
            "{arguments:?}: {part} not in\n{}",
            said.stderr
        );
    }
    assert_eq!(
        *served.seen.lock().unwrap(),
        Vec::<String>::new(),
        "nothing was asked"
    );
}

#[test]
fn without_a_daemon_the_code_is_3_and_the_way_out_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sluice.sock");
    let cases: [&[&str]; 5] = [
        &["status"],
        &["service", "list", "--json"],
        &["backend", "list"],
        &["backend", "drain", "web", "10.0.0.11"],
        &["reload"],
    ];
    for arguments in cases {
        let said = sluice(&socket, arguments);
        assert_eq!((said.code, said.stdout.as_str()), (3, ""), "{arguments:?}");
        for part in [socket.to_str().unwrap(), "sluice run", "--socket"] {
            assert!(said.stderr.contains(part), "{part} not in\n{}", said.stderr);
        }
    }
}

#[test]
fn the_option_wins_over_the_environment() {
    let served = Served::start();
    let option = [
        "status",
        "--socket",
        served.socket.to_str().unwrap(),
        "--json",
    ];
    let status: Status = json(Path::new("/nonexistent/sluice.sock"), &option);
    assert_eq!(status.pid, 812);
}

#[test]
fn without_permission_the_code_is_3_and_sudo_is_named() {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        // Written past the test's captured output, so that it is seen.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED without_permission_the_code_is_3_and_sudo_is_named: needs root, to become another user"
        );
        return;
    }
    let served = Served::start();
    // The build directory may be closed to other users.
    let binary = served.directory().join("sluice");
    std::fs::copy(SLUICE, &binary).unwrap();
    let said: Said = command(&binary, &served.socket, &["status"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap()
        .into();
    assert_eq!(said.code, 3, "{}", said.stderr);
    for part in [
        "permission denied",
        "it belongs to root:root, mode 0660",
        "sudo",
        "group",
    ] {
        assert!(said.stderr.contains(part), "{part} not in\n{}", said.stderr);
    }
}

#[test]
fn check_says_in_json_too_that_the_file_is_missing() {
    let missing = "/nonexistent/sluice.toml";
    let said = sluice(
        Path::new("/nonexistent"),
        &["check", "--config", missing, "--json"],
    );
    assert_eq!(said.code, 1);
    let findings: Vec<Finding> = serde_json::from_str(&said.stdout).unwrap();
    assert!(findings[0].what.contains(missing), "{findings:?}");
    let said = sluice(Path::new("/nonexistent"), &["check", "--config", missing]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains(missing), "{}", said.stderr);
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
