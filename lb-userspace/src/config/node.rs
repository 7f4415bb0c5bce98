//! The tables that describe the node: `[node]`, `[capacity]`, `[api]`, `[metrics]`.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use lb_common::service::Echo;

use super::error::Problems;
use super::read::{API, CAPACITY, Field, METRICS, NODE, Section};
use super::service::unusable;
use crate::model::{Capacity, NodeSpec, XdpMode};

const DEFAULT_PIN: &str = "/sys/fs/bpf/sluice";
const DEFAULT_STATE: &str = "/var/lib/sluice";
const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";
const DEFAULT_LISTEN: &str = "127.0.0.1:9464";

/// `sun_path` has 108 bytes, the last of them zero.
const MAX_SOCKET_PATH: usize = 107;
/// IFNAMSIZ is 16, the last byte zero.
const MAX_INTERFACE_NAME: usize = 15;

pub(super) fn node(root: &Section, problems: &mut Problems) -> NodeSpec {
    const EXAMPLE: &str =
        "interfaces = [\"eth0\"] under [node], naming those that carry VIP traffic";
    let mut spec = NodeSpec {
        interfaces: Vec::new(),
        xdp_mode: XdpMode::default(),
        source: Vec::new(),
        hash_seed: None,
        pin: PathBuf::from(DEFAULT_PIN),
        state: PathBuf::from(DEFAULT_STATE),
        icmp_echo: Echo::default(),
    };
    let Some(field) = root.field("node") else {
        problems.add(
            root.at,
            "node.interfaces",
            None,
            format!("missing; write {EXAMPLE}"),
        );
        return spec;
    };
    let section = Section::open(field.node, field.path, &NODE, problems);

    if let Some(field) = section.required("interfaces", &format!("write {EXAMPLE}"), problems) {
        spec.interfaces = interfaces(&field, problems);
    }
    if let Some(field) = section.field("xdp_mode") {
        let known = [
            ("auto", XdpMode::Auto),
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
        ];
        spec.xdp_mode = field.choice(&known, &[], problems).unwrap_or_default();
    }
    if let Some(field) = section.field("source") {
        spec.source = sources(&field, problems);
    }
    if let Some(field) = section.field("hash_seed")
        && let Some(seed) = field.string("a long random word in quotes", problems)
    {
        if seed.trim().is_empty() {
            field.wrong(
                problems,
                "empty; write a long random word, the same on every balancer of a fleet, \
                 or remove the key to have one made",
            );
        }
        spec.hash_seed = Some(seed.to_owned());
    }
    if let Some(field) = section.field("pin")
        && let Some(path) = field.absolute_path(&format!("{DEFAULT_PIN:?}"), problems)
    {
        // The last name only: above the bpffs, dots are fine, and where that begins is the host's affair.
        if path
            .file_name()
            .is_none_or(|name| name.to_string_lossy().contains('.'))
        {
            field.wrong(
                problems,
                format!(
                    "not a name a bpffs takes: the kernel refuses dots there; \
                     write one without, like {DEFAULT_PIN:?}"
                ),
            );
        }
        spec.pin = path;
    }
    if let Some(field) = section.field("state") {
        let path = field.absolute_path(&format!("{DEFAULT_STATE:?}"), problems);
        spec.state = path.unwrap_or(spec.state);
    }
    if let Some(field) = section.field("icmp_echo") {
        let known = Echo::ALL.map(|echo| (echo.name(), echo));
        spec.icmp_echo = field.choice(&known, &[], problems).unwrap_or_default();
    }
    spec
}

fn interfaces(field: &Field, problems: &mut Problems) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let Some(items) = field.items("[\"eth0\"]", problems) else {
        return names;
    };
    if items.is_empty() {
        field.wrong(
            problems,
            "empty; name at least one interface that carries VIP traffic, like [\"eth0\"]",
        );
    }
    for item in items {
        let Some(name) = item.string("an interface name in quotes, like \"eth0\"", problems) else {
            continue;
        };
        // What the kernel's dev_valid_name() refuses.
        let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        if name.is_empty() || name == "." || name == ".." || name.contains(bad) {
            item.wrong(
                problems,
                "not an interface name; write a name that `ip link` lists, like \"eth0\"",
            );
        } else if name.len() > MAX_INTERFACE_NAME {
            item.wrong(
                problems,
                format!(
                    "{} bytes long, and interface names have at most {MAX_INTERFACE_NAME}; \
                     write a name that `ip link` lists",
                    name.len()
                ),
            );
        } else if names.iter().any(|known| known == name) {
            item.wrong(problems, "named twice; remove one");
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

fn sources(field: &Field, problems: &mut Problems) -> Vec<IpAddr> {
    let mut sources: Vec<IpAddr> = Vec::new();
    for item in field
        .items("[\"192.0.2.10\", \"2001:db8::10\"]", problems)
        .unwrap_or_default()
    {
        let Some(string) = item.string("an IP address in quotes, like \"192.0.2.10\"", problems)
        else {
            continue;
        };
        let Ok(address) = string.parse::<IpAddr>() else {
            item.wrong(
                problems,
                "not an IP address; write one of this node's, like \"192.0.2.10\" or \"2001:db8::10\"",
            );
            continue;
        };
        if let Some(why) = unusable(address) {
            item.wrong(
                problems,
                format!("{why}; write an address of this node that backends can see as the sender"),
            );
        } else if let Some(first) = sources
            .iter()
            .find(|first| first.is_ipv4() == address.is_ipv4())
        {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            item.wrong(
                problems,
                format!("a second {family} source beside {first}; keep one per family"),
            );
        } else {
            sources.push(address);
        }
    }
    sources
}

/// How large each map may be made.
const SERVICES: RangeInclusive<u32> = 1..=65_536;
/// Backend ids have 20 bits, and 0 is none.
const BACKENDS: RangeInclusive<u32> = 1..=(1 << 20) - 1;
/// The smallest lookup table, and 2 GiB of slot words.
const SLOTS: RangeInclusive<u32> = 1_021..=1 << 28;
/// A page of entries, and 1 GiB of them.
const FLOWS: RangeInclusive<u32> = 512..=1 << 27;

pub(super) fn capacity(root: &Section, problems: &mut Problems) -> Capacity {
    let mut capacity = Capacity::default();
    let Some(field) = root.field("capacity") else {
        return capacity;
    };
    let section = Section::open(field.node, field.path, &CAPACITY, problems);
    for (key, range, value) in [
        ("services", SERVICES, &mut capacity.services),
        ("backends", BACKENDS, &mut capacity.backends),
        ("slots", SLOTS, &mut capacity.slots),
        ("flows", FLOWS, &mut capacity.flows),
    ] {
        if let Some(field) = section.field(key) {
            *value = field.integer(range, problems).unwrap_or(*value);
        }
    }
    capacity
}

pub(super) fn socket(root: &Section, problems: &mut Problems) -> PathBuf {
    let default = PathBuf::from(DEFAULT_SOCKET);
    let Some(field) = root.field("api") else {
        return default;
    };
    let section = Section::open(field.node, field.path, &API, problems);
    let Some(field) = section.field("socket") else {
        return default;
    };
    let path = field.absolute_path(&format!("{DEFAULT_SOCKET:?}"), problems);
    if let Some(path) = &path
        && path.as_os_str().len() > MAX_SOCKET_PATH
    {
        field.wrong(
            problems,
            format!(
                "{} bytes long, and the path of a Unix socket has at most {MAX_SOCKET_PATH}; \
                 write a shorter one, like {DEFAULT_SOCKET:?}",
                path.as_os_str().len()
            ),
        );
    }
    path.unwrap_or(default)
}

/// `None`: not served.
pub(super) fn metrics_listen(root: &Section, problems: &mut Problems) -> Option<SocketAddr> {
    let default = DEFAULT_LISTEN.parse().ok();
    let Some(field) = root.field("metrics") else {
        return default;
    };
    let section = Section::open(field.node, field.path, &METRICS, problems);
    let Some(field) = section.field("listen") else {
        return default;
    };
    const EXAMPLE: &str =
        "an address and a port, like \"127.0.0.1:9464\" or \"[::1]:9464\", or \"off\"";
    match field.string(EXAMPLE, problems)? {
        "off" => None,
        string => {
            let address = string.parse().ok();
            if address.is_none() {
                field.wrong(
                    problems,
                    format!("not an address and port; write {EXAMPLE}"),
                );
            }
            address
        }
    }
}
