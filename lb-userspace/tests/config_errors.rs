//! What operators read when `sluice.toml` is wrong, and that what is right is understood.
//!
//! Every `bad-configs/NAME.toml` has its exact message in `NAME.err`. After a deliberate change of wording, rewrite the
//! messages with `SLUICE_REWRITE_ERRORS=1 cargo test -p lb-userspace --test config_errors` and read the diff.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_userspace::config::{self, ConfigError};
use lb_userspace::model::{
    Affinity, BackendSpec, Capacity, Config, FlowTimes, Forward, HealthSpec, NodeSpec, OnEmpty,
    ProbeKind, Protocol, ServiceKey, ServiceSpec, TableSize, Tracking, XdpMode,
};

const REWRITE: &str = "SLUICE_REWRITE_ERRORS";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad-configs")
}

#[test]
fn every_bad_file_gets_its_exact_message() {
    let rewrite = std::env::var_os(REWRITE).is_some();
    let mut files: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    assert!(
        files.len() >= 30,
        "only {} bad files in {}",
        files.len(),
        folder().display()
    );

    let mut wrong = Vec::new();
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(path).unwrap();
        let got = match config::parse(&text, name) {
            Ok(_) => {
                wrong.push(format!("{name}: accepted"));
                continue;
            }
            Err(error) => format!("{error}\n"),
        };
        let expected_in = path.with_extension("err");
        if rewrite {
            fs::write(expected_in, got).unwrap();
            continue;
        }
        let expected = fs::read_to_string(expected_in).unwrap_or_default();
        if got != expected {
            wrong.push(format!("{name}\n--- expected\n{expected}--- got\n{got}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} messages differ (deliberately? then set {REWRITE}=1):\n{}",
        wrong.len(),
        files.len(),
        wrong.join("\n")
    );
    assert!(!rewrite, "messages rewritten; run again without {REWRITE}");
}

/// The example of the user contract, with the values that are placeholders there.
const CONTRACT: &str = r#"
[node]
interfaces = ["eth0"]            # carry VIP traffic
xdp_mode   = "auto"              # auto | native | generic ; status shows what was got
source     = ["192.0.2.10", "2001:db8::10"]   # outer source addresses; default: from the egress interface
hash_seed  = "correct horse battery staple"
[capacity]
services = 1024
backends = 16384                 # service × backend
slots    = 4194304
flows    = 1048576
[api]
socket = "/run/sluice/sluice.sock"
[metrics]
listen = "127.0.0.1:9464"

[[service]]
name     = "web"
vip      = "203.0.113.10:80"     # "[2001:db8::1]:443", "203.0.113.10:*"
protocol = "tcp"                 # tcp | udp
forward  = "ipip"
affinity = "5-tuple"             # 5-tuple | client-ip
tracking = "adaptive"
table_size = "auto"
  [service.health]
  kind = "http"
  path = "/healthz"
  port = 8080                    # default: the service's port
  interval = "2s"
  timeout  = "1s"
  rise = 2
  fall = 3
  [[service.backend]]
  address = "10.0.0.11"
  weight  = 1
"#;

#[test]
fn the_example_of_the_contract_is_understood() {
    let expected = Config {
        node: NodeSpec {
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Auto,
            source: vec![
                "192.0.2.10".parse().unwrap(),
                "2001:db8::10".parse().unwrap(),
            ],
            hash_seed: Some("correct horse battery staple".into()),
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
            icmp_echo: lb_common::service::Echo::default(),
        },
        capacity: Capacity {
            services: 1_024,
            backends: 16_384,
            slots: 4_194_304,
            flows: 1_048_576,
        },
        socket: "/run/sluice/sluice.sock".into(),
        metrics_listen: Some("127.0.0.1:9464".parse().unwrap()),
        services: vec![ServiceSpec {
            name: "web".into(),
            key: ServiceKey {
                vip: "203.0.113.10".parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            forward: Forward::Ipip,
            affinity: Affinity::FiveTuple,
            tracking: Tracking::Adaptive,
            times: FlowTimes::usual(Protocol::Tcp),
            table_size: TableSize::Auto,
            on_empty: OnEmpty::Keep,
            health: HealthSpec {
                kind: ProbeKind::Http {
                    path: "/healthz".into(),
                    host: None,
                    expect: (200, 399),
                },
                port: 8_080,
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                rise: 2,
                fall: 3,
            },
            backends: vec![BackendSpec {
                address: "10.0.0.11".parse().unwrap(),
                weight: 1,
                replaces: None,
            }],
        }],
    };
    assert_eq!(config::parse(CONTRACT, "sluice.toml"), Ok(expected));
}

#[test]
fn one_interface_is_a_configuration() {
    let config = config::parse("node.interfaces = [\"eth0\"]", "sluice.toml").unwrap();
    let expected = Config {
        node: NodeSpec {
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Auto,
            source: vec![],
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
            icmp_echo: lb_common::service::Echo::default(),
        },
        capacity: Capacity::default(),
        socket: "/run/sluice/sluice.sock".into(),
        metrics_listen: Some("127.0.0.1:9464".parse().unwrap()),
        services: vec![],
    };
    assert_eq!(config, expected);
}

/// Parses a file with these services.
fn services(text: &str) -> Vec<ServiceSpec> {
    let text = format!("[node]\ninterfaces = [\"eth0\"]\n{text}");
    config::parse(&text, "sluice.toml")
        .unwrap_or_else(|error| panic!("{error}"))
        .services
}

#[test]
fn a_service_needs_a_name_and_a_vip_only() {
    let services = services("[[service]]\nname = \"web\"\nvip = \"[2001:db8::1]:443\"");
    let expected = ServiceSpec {
        name: "web".into(),
        key: ServiceKey {
            vip: "2001:db8::1".parse().unwrap(),
            port: 443,
            protocol: Protocol::Tcp,
        },
        forward: Forward::Ipip,
        affinity: Affinity::FiveTuple,
        tracking: Tracking::Adaptive,
        times: FlowTimes::usual(Protocol::Tcp),
        table_size: TableSize::Auto,
        on_empty: OnEmpty::Keep,
        health: HealthSpec::default(),
        backends: vec![],
    };
    assert_eq!(services, [expected]);
}

#[test]
fn words_are_understood() {
    let services = services(
        r#"
        [[service]]
        name = "dns.v4_1-a"
        vip = "203.0.113.53:*"
        protocol = "udp"
        forward = "l2"
        affinity = "client-ip"
        tracking = "off"
        flow_idle = "4h 30m"
        grace = "500ms"
        hold_down = "0s"
        linger = "30m"
        table_size = 65537
        on_empty = "drop"
        backend = [{ address = "10.0.0.11", weight = 0 }, { address = "2001:db8::12", weight = 1_000 }]
        [[service]]
        name = "same-vip-other-protocol"
        vip = "203.0.113.53:53"
        [[service]]
        name = "same-vip-and-port-other-protocol"
        vip = "203.0.113.53:53"
        protocol = "udp"
        "#,
    );
    let dns = &services[0];
    assert_eq!(dns.key.to_string(), "203.0.113.53:*/udp");
    assert_eq!(dns.forward, Forward::L2);
    assert_eq!(dns.affinity, Affinity::ClientIp);
    assert_eq!(dns.table_size, TableSize::Fixed(65_537));
    assert_eq!(dns.on_empty, OnEmpty::Drop);
    let times = FlowTimes {
        flow_idle: Duration::from_secs(16_200),
        grace: Duration::from_millis(500),
        hold_down: Duration::ZERO,
        linger: Duration::from_secs(1_800),
    };
    assert_eq!((dns.tracking, dns.times), (Tracking::Off, times));
    assert_eq!(services[1].times, FlowTimes::usual(Protocol::Tcp));
    assert_eq!(services[2].times, FlowTimes::usual(Protocol::Udp));
    let weights: Vec<u32> = dns.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [0, 1_000]);
    // A TCP handshake says nothing about a UDP server.
    assert_eq!(dns.health.kind, ProbeKind::None);
    assert_eq!(services[1].health.kind, ProbeKind::Tcp);
    assert_eq!(services[2].health.kind, ProbeKind::None);
}

#[test]
fn metrics_can_be_off() {
    let text = "node.interfaces = [\"eth0\"]\nmetrics.listen = \"off\"";
    let config = config::parse(text, "sluice.toml").unwrap();
    assert_eq!(config.metrics_listen, None);
}

#[test]
fn probes_of_a_short_interval_have_a_timeout_that_fits() {
    let services = services(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:80\"\nhealth = { interval = \"500ms\" }",
    );
    assert_eq!(services[0].health.interval, Duration::from_millis(500));
    assert_eq!(services[0].health.timeout, Duration::from_millis(500));
}

#[test]
fn a_status_range_may_be_one_status() {
    let services = services(
        r#"
        [[service]]
        name = "web"
        vip = "203.0.113.10:80"
        health = { kind = "http", host = "www.example.org", expect = "204" }
        "#,
    );
    let expected = ProbeKind::Http {
        path: "/".into(),
        host: Some("www.example.org".into()),
        expect: (204, 204),
    };
    assert_eq!(services[0].health.kind, expected);
}

#[test]
fn a_table_must_have_a_slot_for_every_backend() {
    let many: Vec<String> = (0..1_022)
        .map(|n| format!("{{ address = \"10.0.{}.{}\" }}", n / 250, n % 250 + 1))
        .collect();
    let text = |size: &str| {
        format!(
            "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10:80\"\n\
             table_size = {size}\nbackend = [{}]",
            many.join(", ")
        )
    };
    let error = config::parse(&text("1021"), "sluice.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "sluice.toml:6:14: service \"web\".table_size = 1021: fewer slots than the service has backends, 1022; \
         write \"auto\" or a larger size"
    );
    assert!(config::parse(&text("4093"), "sluice.toml").is_ok());
    assert!(config::parse(&text("\"auto\""), "sluice.toml").is_ok());
}

#[test]
fn default_capacity_that_is_exceeded_blames_the_service_that_goes_beyond() {
    let service = |n: u32| {
        format!("[[service]]\nname = \"s{n}\"\nvip = \"203.0.113.10:{n}\"\ntable_size = 65537\n")
    };
    let all: String = (1..=64).map(service).collect();
    let text = format!("node.interfaces = [\"eth0\"]\n{all}");
    let error = config::parse(&text, "sluice.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "sluice.toml:254:1: capacity.slots: the file needs 4194368 slots for its lookup tables and the limit is \
         4194304; write slots = 4194368 or more under [capacity]"
    );
}

#[test]
fn a_service_as_json_obeys_the_same_rules() {
    let service = serde_json::json!({
        "name": "web",
        "vip": "203.0.113.10:80",
        "health": { "kind": "http", "path": "/healthz", "port": 8080 },
        "backend": [{ "address": "10.0.0.11", "weight": 1 }],
    });
    let from_file = config::parse(CONTRACT, "sluice.toml").unwrap().services;
    assert_eq!(config::parse_service(service).as_ref(), Ok(&from_file[0]));

    let bad = serde_json::json!({
        "name": "web",
        "vip": "203.0.113.10",
        "forward": null,
        "health": { "intervall": "2s", "rise": 1.5, "fall": u64::MAX },
        "backend": [{ "address": "10.0.0.11" }, { "address": "10.0.0.11", "weight": true }],
    });
    let error = config::parse_service(bad).unwrap_err();
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    let expected = [
        "service.vip = \"203.0.113.10\": has no port; write \"203.0.113.10:80\", or \"203.0.113.10:*\" for every port",
        "service.forward = null: null where a string is needed; write \"ipip\", \"gue\" or \"l2\"",
        "service.backend #2.weight = true: a boolean where an integer is needed; write a number from 0 to 1000",
        "service.backend #2.address = \"10.0.0.11\": is a backend of this service already; remove one, or use weight to give it a larger share",
        "service.health.intervall: unknown key; did you mean `interval`? Known keys are kind, path, host, expect, port, interval, timeout, rise, fall",
        "service.health.rise = 1.5: a float where an integer is needed; write a number from 1 to 100",
        "service.health.fall = 18446744073709551615: out of range; write a number from 1 to 100",
    ];
    assert_eq!(lines, expected);

    let error = config::parse_service(serde_json::json!("web")).unwrap_err();
    assert_eq!(
        error.to_string().lines().next(),
        Some("service: a string where a table is needed; write [[service]]")
    );
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let error = config::load(Path::new("/nonexistent/sluice.toml")).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert_eq!(
        error.to_string(),
        "/nonexistent/sluice.toml: cannot be read: No such file or directory (os error 2); name the file with --config FILE"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sluice.toml");
    fs::write(&path, CONTRACT).unwrap();
    assert_eq!(config::load(&path).unwrap().services.len(), 1);
}

/// Whatever stands in the file, the answer is a configuration or a message, never a panic.
#[test]
fn no_cut_or_damaged_file_panics() {
    for cut in (0..CONTRACT.len()).filter(|&cut| CONTRACT.is_char_boundary(cut)) {
        if let Err(error) = config::parse(&CONTRACT[..cut], "sluice.toml") {
            assert!(!error.to_string().is_empty());
        }
        let damaged = format!("{}\u{e9}\"{}", &CONTRACT[..cut], &CONTRACT[cut..]);
        let _ = config::parse(&damaged, "sluice.toml");
        let nulled = format!("{}0{}", &CONTRACT[..cut], &CONTRACT[cut..]);
        let _ = config::parse(&nulled, "sluice.toml");
    }
}
