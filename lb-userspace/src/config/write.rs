//! The way back: from a checked configuration to the tables of `sluice.toml`. What is as by default is left out of a service.
//!
//! Every type is taken apart by all its fields, so that a new one cannot be forgotten here.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::health::DEFAULT_EXPECT;
use crate::model::{
    Affinity, BackendSpec, Capacity, Config, FlowTimes, Forward, HealthSpec, NodeSpec, OnEmpty,
    ProbeKind, Protocol, ServiceSpec, TableSize, Tracking, XdpMode,
};

#[derive(Serialize)]
struct Root<'a> {
    node: Node<'a>,
    capacity: Sizes,
    api: Api<'a>,
    metrics: Metrics,
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Node<'a> {
    interfaces: &'a [String],
    xdp_mode: XdpMode,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_seed: Option<&'a str>,
    pin: &'a std::path::Path,
    state: &'a std::path::Path,
    icmp_echo: &'static str,
}

#[derive(Serialize)]
struct Sizes {
    services: u32,
    backends: u32,
    slots: u32,
    flows: u32,
}

#[derive(Serialize)]
struct Api<'a> {
    socket: &'a std::path::Path,
}

#[derive(Serialize)]
struct Metrics {
    listen: String,
}

#[derive(Serialize)]
struct Service<'a> {
    name: &'a str,
    vip: String,
    protocol: Protocol,
    forward: Forward,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<Affinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracking: Option<Tracking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_idle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_down: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linger: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_empty: Option<OnEmpty>,
    health: Health<'a>,
    #[serde(rename = "backend", skip_serializing_if = "Vec::is_empty")]
    backends: Vec<Backend>,
}

#[derive(Serialize)]
struct Health<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rise: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fall: Option<u32>,
}

#[derive(Serialize)]
struct Backend {
    address: IpAddr,
    weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<IpAddr>,
}

/// The whole file, without comments.
///
/// # Errors
/// When a path is no text, which a file cannot have said.
pub fn to_toml(config: &Config) -> Result<String, toml::ser::Error> {
    let Config {
        node,
        capacity,
        socket,
        metrics_listen,
        services,
    } = config;
    let NodeSpec {
        interfaces,
        xdp_mode,
        source,
        hash_seed,
        pin,
        state,
        icmp_echo,
    } = node;
    let Capacity {
        services: most_services,
        backends,
        slots,
        flows,
    } = *capacity;
    toml::to_string(&Root {
        node: Node {
            interfaces,
            xdp_mode: *xdp_mode,
            source,
            hash_seed: hash_seed.as_deref(),
            pin,
            state,
            icmp_echo: icmp_echo.name(),
        },
        capacity: Sizes {
            services: most_services,
            backends,
            slots,
            flows,
        },
        api: Api { socket },
        metrics: Metrics {
            listen: metrics_listen.map_or_else(|| "off".to_owned(), |address| address.to_string()),
        },
        services: services.iter().map(service).collect(),
    })
}

/// A `[[service]]` as JSON: what `parse_service` takes.
pub fn service_to_json(spec: &ServiceSpec) -> serde_json::Value {
    serde_json::to_value(service(spec)).expect("strings, numbers and lists have a JSON form")
}

fn duration(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

/// The value, unless it is the default.
fn unusual<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

fn service(spec: &ServiceSpec) -> Service<'_> {
    let ServiceSpec {
        name,
        key,
        forward,
        affinity,
        tracking,
        times,
        table_size,
        on_empty,
        health,
        backends,
    } = spec;
    let FlowTimes {
        flow_idle,
        grace,
        hold_down,
        linger,
    } = *times;
    let usual = FlowTimes::usual(key.protocol);
    let vip = key.to_string();
    Service {
        name,
        vip: vip
            .rsplit_once('/')
            .map_or(vip.as_str(), |(vip, _)| vip)
            .to_owned(),
        protocol: key.protocol,
        forward: *forward,
        affinity: unusual(*affinity, Affinity::default()),
        tracking: unusual(*tracking, Tracking::default()),
        flow_idle: unusual(flow_idle, usual.flow_idle).map(duration),
        grace: unusual(grace, usual.grace).map(duration),
        hold_down: unusual(hold_down, usual.hold_down).map(duration),
        linger: unusual(linger, usual.linger).map(duration),
        table_size: match table_size {
            TableSize::Auto => None,
            TableSize::Fixed(size) => Some(*size),
        },
        on_empty: unusual(*on_empty, OnEmpty::default()),
        health: probes(health),
        backends: backends.iter().map(backend).collect(),
    }
}

fn backend(spec: &BackendSpec) -> Backend {
    let BackendSpec {
        address,
        weight,
        replaces,
    } = *spec;
    Backend {
        address,
        weight,
        replaces,
    }
}

fn probes(spec: &HealthSpec) -> Health<'_> {
    let HealthSpec {
        kind,
        port,
        interval,
        timeout,
        rise,
        fall,
    } = spec;
    let usual = HealthSpec::default();
    let (kind, http) = match kind {
        ProbeKind::None => ("none", None),
        ProbeKind::Tcp => ("tcp", None),
        ProbeKind::Http { path, host, expect } => {
            ("http", Some((path.as_str(), host.as_deref(), *expect)))
        }
    };
    Health {
        kind,
        path: http.map(|(path, _, _)| path),
        host: http.and_then(|(_, host, _)| host),
        expect: http
            .and_then(|(_, _, expect)| unusual(expect, DEFAULT_EXPECT))
            .map(|(low, high)| format!("{low}-{high}")),
        port: unusual(*port, 0),
        interval: unusual(*interval, usual.interval).map(duration),
        // Unwritten, it follows the interval.
        timeout: unusual(*timeout, usual.timeout.min(*interval)).map(duration),
        rise: unusual(*rise, usual.rise),
        fall: unusual(*fall, usual.fall),
    }
}
