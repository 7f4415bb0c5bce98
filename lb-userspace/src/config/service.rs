//! One `[[service]]`: VIP, forwarding, table and backends. Its health is in `health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::Problems;
use super::health;
use super::raw::{Node, Value};
use super::read::{BACKEND, Field, SERVICE, Section};
use crate::model::{
    Affinity, BackendSpec, FlowTimes, Forward, OnEmpty, Protocol, ServiceKey, ServiceSpec,
    TableSize, Tracking,
};

const MAX_NAME: usize = 63;
/// The age of a flow entry turns around after 4 h 52 min; whoever was silent for too long must have been cleared by then, by a sweep
/// that may be late.
const FLOW_IDLE: RangeInclusive<Duration> = Duration::from_secs(8)..=Duration::from_secs(16_200);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
const LINGER: RangeInclusive<Duration> = HOLD_DOWN;
const VIP_EXAMPLE: &str =
    "an address and a port, like \"203.0.113.10:80\" or \"[2001:db8::1]:443\"";

/// A service as declared, and where: for rules that span services, which look at what is right even if the rest of the
/// service is wrong.
pub(super) struct Declared {
    /// What messages call it.
    pub path: String,
    pub at: Option<usize>,
    pub name: Option<String>,
    pub name_at: Option<usize>,
    pub key: Option<ServiceKey>,
    pub vip_at: Option<usize>,
    pub backends: usize,
    /// Size of the lookup table.
    pub slots: u32,
    /// `None` when name, VIP or protocol are missing or wrong, which has been noted.
    pub spec: Option<ServiceSpec>,
}

/// What messages call the service at place `number` (from 1) of the file.
pub(super) fn path(node: &Node, number: usize) -> String {
    if let Some(Value::String(name)) = node.get("name").map(|name| &name.value)
        && is_name(name)
    {
        format!("service {name:?}")
    } else {
        format!("service #{number}")
    }
}

pub(super) fn declared(node: &Node, path: String, problems: &mut Problems) -> Declared {
    let section = Section::open(node, path, &SERVICE, problems);
    let name_field = section.required("name", "write a name, like name = \"web\"", problems);
    let name = name_field.as_ref().and_then(|field| name(field, problems));
    let vip_field = section.required(
        "vip",
        "write the address and port to answer for, like vip = \"203.0.113.10:80\"",
        problems,
    );
    let vip = vip_field.as_ref().and_then(|field| vip(field, problems));

    let protocol = match section.field("protocol") {
        Some(field) => {
            let known = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
            field.choice(&known, &[], problems)
        }
        None => Some(Protocol::Tcp),
    };
    let forward = section
        .field("forward")
        .and_then(|field| {
            let known = [
                ("ipip", Forward::Ipip),
                ("gue", Forward::Gue),
                ("l2", Forward::L2),
            ];
            field.choice(&known, &["nat"], problems)
        })
        .unwrap_or(Forward::Ipip);
    let affinity = section
        .field("affinity")
        .and_then(|field| {
            let known = [
                ("5-tuple", Affinity::FiveTuple),
                ("client-ip", Affinity::ClientIp),
            ];
            field.choice(&known, &[], problems)
        })
        .unwrap_or_default();
    let tracking = section
        .field("tracking")
        .and_then(|field| {
            let known = [
                ("adaptive", Tracking::Adaptive),
                ("always", Tracking::Always),
                ("off", Tracking::Off),
            ];
            field.choice(&known, &[], problems)
        })
        .unwrap_or_default();
    let times = times(&section, protocol, problems);
    let on_empty = section
        .field("on_empty")
        .and_then(|field| {
            let known = [("keep", OnEmpty::Keep), ("drop", OnEmpty::Drop)];
            field.choice(&known, &[], problems)
        })
        .unwrap_or_default();

    let backends = backends(&section, vip.map(|(vip, _)| vip), problems);
    let table_size = table_size(&section, backends.len(), problems);
    let port = vip.map(|(_, port)| port);
    let health = health::resolve(&section, protocol, port, problems);

    let key = vip.zip(protocol).map(|((vip, port), protocol)| ServiceKey {
        vip,
        port,
        protocol,
    });
    Declared {
        at: section.at,
        name_at: name_field.map_or(section.at, |field| field.node.at),
        vip_at: vip_field.map_or(section.at, |field| field.node.at),
        path: section.path,
        name: name.clone(),
        key,
        backends: backends.len(),
        slots: table_size.resolve(backends.len()),
        spec: name.zip(key).map(|(name, key)| ServiceSpec {
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
        }),
    }
}

/// Names stand in URLs, metric labels and shell commands.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn name(field: &Field, problems: &mut Problems) -> Option<String> {
    let name = field.string("a name in quotes, like \"web\"", problems)?;
    if is_name(name) {
        return Some(name.to_owned());
    }
    field.wrong(
        problems,
        format!(
            "not a service name; write 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`, \
             the first a letter or digit"
        ),
    );
    None
}

/// Address and port, 0 for every port.
fn vip(field: &Field, problems: &mut Problems) -> Option<(IpAddr, u16)> {
    let text = field.string(VIP_EXAMPLE, problems)?;
    match split_vip(text) {
        Ok((address, port)) => match unusable(address) {
            None => return Some((address, port)),
            Some(why) => field.wrong(
                problems,
                format!("{why}; write the unicast address that clients connect to"),
            ),
        },
        Err(what) => field.wrong(problems, what),
    }
    None
}

fn split_vip(text: &str) -> Result<(IpAddr, u16), String> {
    if text.parse::<Ipv4Addr>().is_ok() {
        return Err(format!(
            "has no port; write \"{text}:80\", or \"{text}:*\" for every port"
        ));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
        return Err(format!(
            "has no port, or an IPv6 address without brackets; write \"[{ip}]:443\", or \"[{ip}]:*\" for every port"
        ));
    }
    let no_address = || format!("not an address and port; write {VIP_EXAMPLE}");
    let (host, port) = text.rsplit_once(':').ok_or_else(no_address)?;
    let address = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => host.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().map(IpAddr::V4),
    }
    .map_err(|_| match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("an IPv6 address needs brackets; write \"[{ip}]:{port}\""),
        Err(_) => no_address(),
    })?;
    match port {
        "*" => Ok((address, 0)),
        "0" => Err(format!(
            "port 0 does not exist; write \"{host}:*\" for every port"
        )),
        // Digits only: `u16::from_str` would take "+80" too.
        _ => match port.parse() {
            Ok(number) if port.bytes().all(|byte| byte.is_ascii_digit()) => Ok((address, number)),
            _ => Err(format!(
                "{port:?} is not a port; write a number from 1 to 65535, or * for every port"
            )),
        },
    }
}

/// Why packets cannot be sent to (or from) an address.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    if address.is_loopback() {
        return Some("a loopback address, which never leaves its host");
    }
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Some("an IPv4 address in IPv6 clothes, which no packet carries")
        }
        _ => None,
    }
}

fn times(section: &Section, protocol: Option<Protocol>, problems: &mut Problems) -> FlowTimes {
    let mut times = FlowTimes::usual(protocol.unwrap_or(Protocol::Tcp));
    for (key, range, time) in [
        ("flow_idle", FLOW_IDLE, &mut times.flow_idle),
        ("grace", GRACE, &mut times.grace),
        ("hold_down", HOLD_DOWN, &mut times.hold_down),
        ("linger", LINGER, &mut times.linger),
    ] {
        if let Some(field) = section.field(key) {
            *time = field.duration(range, problems).unwrap_or(*time);
        }
    }
    times
}

fn table_size(section: &Section, backends: usize, problems: &mut Problems) -> TableSize {
    let Some(field) = section.field("table_size") else {
        return TableSize::Auto;
    };
    let sizes = TableSize::OFFERED.map(|size| size.to_string());
    let words = format!("\"auto\" or one of {}, without quotes", sizes.join(", "));
    match &field.node.value {
        Value::String(word) if word == "auto" => TableSize::Auto,
        Value::Integer(n) => {
            let offered = |size: &u32| i64::from(*size) == *n;
            let Some(size) = TableSize::OFFERED.into_iter().find(offered) else {
                field.wrong(problems, format!("not an offered size; write {words}"));
                return TableSize::Auto;
            };
            if (size as usize) < backends {
                field.wrong(
                    problems,
                    format!("fewer slots than the service has backends, {backends}; write \"auto\" or a larger size"),
                );
            }
            TableSize::Fixed(size)
        }
        _ => {
            field.wrong(problems, format!("not a table size; write {words}"));
            TableSize::Auto
        }
    }
}

fn backends(section: &Section, vip: Option<IpAddr>, problems: &mut Problems) -> Vec<BackendSpec> {
    let mut backends: Vec<BackendSpec> = Vec::new();
    let (mut places, mut keys) = (Vec::new(), Vec::new());
    let Some(items) = section
        .field("backend")
        .and_then(|field| field.items("[[service.backend]]", problems))
    else {
        return backends;
    };
    for item in items {
        let section = Section::open(item.node, item.path, &BACKEND, problems);
        let weight = section
            .field("weight")
            .and_then(|field| field.integer(0..=BackendSpec::MAX_WEIGHT, problems))
            .unwrap_or(1);
        let Some(field) = section.required(
            "address",
            "write it, like address = \"10.0.0.11\"",
            problems,
        ) else {
            continue;
        };
        let Some(address) = backend_address(&field, vip, problems) else {
            continue;
        };
        let key = section.field("replaces");
        let replaces = key
            .as_ref()
            .and_then(|field| replaced(field, address, vip, problems));
        if let Some(first) = backends.iter().position(|known| known.address == address) {
            let line = problems.line_hint(places[first]);
            field.wrong(
                problems,
                format!("is a backend of this service already{line}; remove one, or use weight to give it a larger share"),
            );
            continue;
        }
        backends.push(BackendSpec {
            address,
            weight,
            replaces,
        });
        places.push(field.node.at);
        keys.push(key.and_then(|field| field.node.at));
    }
    one_place_each(section, &backends, (&places, &keys), problems);
    backends
}

/// Whose place in the lookup table a backend has.
fn replaced(
    field: &Field,
    own: IpAddr,
    vip: Option<IpAddr>,
    problems: &mut Problems,
) -> Option<IpAddr> {
    let old = backend_address(field, vip, problems)?;
    if old == own {
        field.wrong(
            problems,
            "is the backend's own address, so there is nothing to inherit; remove this key",
        );
        return None;
    }
    Some(old)
}

/// Two backends in one place of the lookup table would share their slots by chance. `at`: where their addresses, and what they
/// replace, are written.
fn one_place_each(
    section: &Section,
    backends: &[BackendSpec],
    (places, keys): (&[Option<usize>], &[Option<usize>]),
    problems: &mut Problems,
) {
    let heirs = backends.iter().enumerate();
    for (i, backend) in heirs.filter(|(_, backend)| backend.replaces.is_some()) {
        let place = backend.identity();
        let other = |(n, other): &(usize, &BackendSpec)| {
            // Of two that replace the same one, the second is wrong.
            other.identity() == place && (other.replaces.is_none() || *n < i)
        };
        let Some((n, other)) = backends.iter().enumerate().find(other) else {
            continue;
        };
        let line = problems.line_hint(places[n]);
        let what = if other.replaces.is_none() {
            format!(
                "{place} is a backend of this service itself{line}, and both cannot have its place in the lookup table; \
                 remove that backend, or this key"
            )
        } else {
            format!(
                "backend {} has the place of {place} already{line}; remove one of the two keys",
                other.address
            )
        };
        let path = format!("{} #{}.replaces", section.key("backend"), i + 1);
        problems.add(keys[i], path, Some(format!("\"{place}\"")), what);
    }
}

fn backend_address(field: &Field, vip: Option<IpAddr>, problems: &mut Problems) -> Option<IpAddr> {
    let text = field.string("an IP address in quotes, like \"10.0.0.11\"", problems)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let what = match text.parse::<std::net::SocketAddr>() {
            Ok(socket) => format!(
                "a backend has no port, because packets keep the VIP's; write \"{}\"",
                socket.ip()
            ),
            Err(_) => "not an IP address; write one, like \"10.0.0.11\" or \"2001:db8::11\" (names are not resolved)".to_owned(),
        };
        field.wrong(problems, what);
        return None;
    };
    if let Some(why) = unusable(address) {
        field.wrong(
            problems,
            format!("{why}; write the backend's own unicast address"),
        );
        return None;
    }
    if vip == Some(address) {
        field.wrong(
            problems,
            "is the service's VIP, so packets would come back to the balancer; write the backend's own address",
        );
        return None;
    }
    Some(address)
}
