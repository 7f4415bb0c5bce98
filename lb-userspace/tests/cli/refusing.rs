//! Everything that does not work: exit codes, and messages that name the way out.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use lb_userspace::api::dto::Status;
use lb_userspace::check::Finding;

use crate::served::Served;
use crate::{SLUICE, Said, command, json, sluice};

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
    let cases: [(&[&str], &str); 14] = [
        (&[], "Usage: sluice"),
        (
            &["backend", "drain", "web", "10.0.0.11", "--no-wait"],
            "--until-empty",
        ),
        (
            &["backend", "drain", "web", "10.0.0.11", "--timeout", "10"],
            "write for example 10m or 2h",
        ),
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
            std::io::stdout(),
            "SKIPPED without_permission_the_code_is_3_and_sudo_is_named: needs root, to become another user"
        );
        return;
    }
    let served = Served::start();
    // The build directory may be closed to other users.
    let binary = served.directory().join("sluice");
    // By another process: were the copy open for writing here, a test that forks meanwhile would hold it open, and it could not
    // be executed ("text file busy").
    let copied = std::process::Command::new("cp")
        .arg(SLUICE)
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let as_nobody = || -> Said {
        command(&binary, &served.socket, &["status"])
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap()
            .into()
    };
    let directory = served.socket.parent().unwrap();
    let above = format!("{} belongs to root:root, mode 0750", directory.display());
    for (mode, owner) in [
        (0o755, "it belongs to root:root, mode 0660"),
        (0o750, above.as_str()),
    ] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
        let said = as_nobody();
        assert_eq!(said.code, 3, "{}", said.stderr);
        for part in ["permission denied", owner, "sudo", "group"] {
            assert!(said.stderr.contains(part), "{part} not in\n{}", said.stderr);
        }
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
