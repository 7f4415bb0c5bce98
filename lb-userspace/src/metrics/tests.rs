use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::health::ProbeTarget;
use crate::model::ProbeKind;

fn snapshot() -> Snapshot {
    let mut stats = ProbeStatistics::new(ProbeTarget {
        address: ([10, 0, 0, 11], 80).into(),
        kind: ProbeKind::Tcp,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(10),
        rise: 2,
        fall: 3,
    });
    stats.count(true, Duration::from_micros(400));
    stats.count(true, Duration::from_millis(1));
    stats.count(false, Duration::from_secs(9));
    Snapshot {
        version: "0.1.0".to_owned(),
        backends: vec![
            BackendSample {
                service: "web".to_owned(),
                address: "10.0.0.11".parse().unwrap(),
                packets: 1_000,
                bytes: 64_000,
                flows: 10,
                declared: Some(Declared {
                    up: true,
                    weight: 3,
                }),
            },
            BackendSample {
                service: "we\"ird".to_owned(),
                address: "2001:db8::11".parse().unwrap(),
                packets: u64::MAX,
                bytes: 0,
                flows: 0,
                declared: Some(Declared {
                    up: false,
                    weight: 0,
                }),
            },
        ],
        reasons: vec![ReasonSample {
            verdict: "pass".to_owned(),
            reason: "no-service".to_owned(),
            packets: 7,
        }],
        probes: vec![ProbeSample {
            service: "web".to_owned(),
            backend: "10.0.0.11".parse().unwrap(),
            stats,
        }],
        table_digests: vec![TableDigest {
            service: "web".to_owned(),
            digest: "9f86d081".to_owned(),
        }],
        slots: vec![SlotSample {
            service: "web".to_owned(),
            mode: "steady".to_owned(),
            slots: 1_021,
        }],
        flow_entries: vec![("established", 3)],
        events: vec![(Event::PinFailed, 5), (Event::LearningLost, 6)],
        table_changes: 4,
    }
}

/// The samples that the contract promises, with this snapshot's values.
const SAMPLES: &[&str] = &[
    r#"sluice_backend_packets_total{service="web",backend="10.0.0.11"} 1000"#,
    r#"sluice_backend_packets_total{service="we\"ird",backend="2001:db8::11"} 18446744073709551615"#,
    r#"sluice_backend_bytes_total{service="web",backend="10.0.0.11"} 64000"#,
    r#"sluice_backend_flows_total{service="web",backend="10.0.0.11"} 10"#,
    r#"sluice_backend_up{service="web",backend="10.0.0.11"} 1"#,
    r#"sluice_backend_up{service="we\"ird",backend="2001:db8::11"} 0"#,
    r#"sluice_backend_weight{service="web",backend="10.0.0.11"} 3"#,
    r#"sluice_packets_total{verdict="pass",reason="no-service"} 7"#,
    r#"sluice_probes_total{service="web",backend="10.0.0.11",result="success"} 2"#,
    r#"sluice_probes_total{service="web",backend="10.0.0.11",result="failure"} 1"#,
    r#"sluice_probe_duration_seconds_count{service="web",backend="10.0.0.11"} 3"#,
    r#"sluice_probe_duration_seconds_sum{service="web",backend="10.0.0.11"} 9.0014"#,
    r#"sluice_probe_duration_seconds_bucket{le="0.00025",service="web",backend="10.0.0.11"} 0"#,
    r#"sluice_probe_duration_seconds_bucket{le="0.0005",service="web",backend="10.0.0.11"} 1"#,
    r#"sluice_probe_duration_seconds_bucket{le="0.001",service="web",backend="10.0.0.11"} 2"#,
    r#"sluice_probe_duration_seconds_bucket{le="5.0",service="web",backend="10.0.0.11"} 2"#,
    r#"sluice_probe_duration_seconds_bucket{le="+Inf",service="web",backend="10.0.0.11"} 3"#,
    r#"sluice_slots{service="web",mode="steady"} 1021"#,
    r#"sluice_flow_table_entries{state="established"} 3"#,
    "sluice_pins_failed_total 5",
    "sluice_learning_lost_total 6",
    "sluice_table_changes_total 4",
    r#"sluice_table_digest_info{service="web",digest="9f86d081"} 1"#,
    r#"sluice_build_info{version="0.1.0"} 1"#,
];

#[test]
fn both_formats_have_every_sample_of_the_contract() {
    for text in [encode(&snapshot()), encode_plain(&snapshot())] {
        for sample in SAMPLES {
            assert!(
                text.lines().any(|line| line == *sample),
                "{sample} not in\n{text}"
            );
        }
    }
}

#[test]
fn openmetrics_names_families_without_suffix_and_ends_with_its_mark() {
    let text = encode(&snapshot());
    for line in [
        "# TYPE sluice_backend_packets counter",
        "# TYPE sluice_backend_bytes counter",
        "# UNIT sluice_backend_bytes bytes",
        "# TYPE sluice_probe_duration_seconds histogram",
        "# UNIT sluice_probe_duration_seconds seconds",
        "# TYPE sluice_build info",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn plain_names_families_as_their_samples() {
    let text = encode_plain(&snapshot());
    for line in [
        "# TYPE sluice_backend_packets_total counter",
        "# TYPE sluice_backend_bytes_total counter",
        "# TYPE sluice_probe_duration_seconds histogram",
        "# TYPE sluice_build_info gauge",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
    }
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
}

#[test]
fn every_metric_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let documented = std::fs::read_to_string(path).expect("docs/metrics.md");
    for line in encode_plain(&snapshot()).lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let row = documented
                .lines()
                .find(|row| row.contains(&format!("`{name}`")))
                .unwrap_or_else(|| panic!("docs/metrics.md does not have {name}"));
            assert!(row.contains(kind), "{name} is a {kind}: {row}");
        }
    }
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/promtool");
    let child = [workspace, "promtool"].into_iter().find_map(|program| {
        Command::new(program)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()
    });
    let Some(mut child) = child else {
        // Written past the test's captured output, so that it is seen.
        let _ = writeln!(
            std::io::stdout(),
            "SKIPPED promtool_finds_nothing_to_complain_of: no promtool; `cargo xtask setup` installs it"
        );
        return;
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(encode_plain(&snapshot()).as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

struct Fixed {
    snapshot: Option<Snapshot>,
    reasons: Vec<String>,
}

impl Source for Fixed {
    async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        self.snapshot.clone().context("map sluice_backends: gone")
    }

    fn not_ready(&self) -> Vec<String> {
        self.reasons.clone()
    }
}

/// Serves `source`, asks for each path with the header, and returns the whole answers.
async fn answers(source: Fixed, asked: &[(&str, &str)]) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, source, async {
        let _ = stopped.await;
    }));
    let mut answers = Vec::new();
    for (path, header) in asked {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answers.push(answer);
    }
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), server)
        .await
        .expect("the listener ends when told")
        .unwrap()
        .unwrap();
    answers
}

#[tokio::test]
async fn the_listener_serves_both_formats_and_the_health_of_the_daemon() {
    let source = Fixed {
        snapshot: Some(snapshot()),
        reasons: Vec::new(),
    };
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2\r\n";
    let answers = answers(
        source,
        &[
            ("/metrics", ""),
            ("/metrics", accept),
            ("/healthz", ""),
            ("/readyz", ""),
            ("/", ""),
            ("/nope", ""),
        ],
    )
    .await;
    assert!(answers[0].contains(&format!("content-type: {PLAIN}")));
    assert!(answers[0].ends_with(&encode_plain(&snapshot())));
    assert!(answers[1].contains(&format!("content-type: {OPENMETRICS}")));
    assert!(answers[1].ends_with(&encode(&snapshot())));
    assert!(answers[2].starts_with("HTTP/1.1 200") && answers[2].ends_with("\r\n\r\nok\n"));
    assert!(answers[3].starts_with("HTTP/1.1 200") && answers[3].ends_with("\r\n\r\nready\n"));
    assert!(answers[4].starts_with("HTTP/1.1 200") && answers[4].contains("/readyz"));
    assert!(answers[5].starts_with("HTTP/1.1 404") && answers[5].contains("/metrics"));
}

#[tokio::test]
async fn what_is_not_ready_or_broken_is_said() {
    let source = Fixed {
        snapshot: None,
        reasons: vec![
            "eth0: not attached".to_owned(),
            "web: no verdict yet for 10.0.0.12".to_owned(),
        ],
    };
    let answers = answers(
        source,
        &[("/readyz", ""), ("/metrics", ""), ("/healthz", "")],
    )
    .await;
    assert!(answers[0].starts_with("HTTP/1.1 503"));
    assert!(
        answers[0].ends_with("\r\n\r\neth0: not attached\nweb: no verdict yet for 10.0.0.12\n")
    );
    assert!(answers[1].starts_with("HTTP/1.1 500"));
    assert!(answers[1].contains("map sluice_backends: gone"));
    assert!(answers[2].starts_with("HTTP/1.1 200"));
}
