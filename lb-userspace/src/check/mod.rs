//! `sluice check`: what of this host would keep traffic from flowing, each finding with its mend.
//!
//! Owns: looking ([`run`]) and judging ([`host`], [`interfaces`], [`paths`]: pure, over facts passed in).
//! Does not own: the configuration file's own errors (`config`). Changes nothing, and sends nothing but the ARP and
//! neighbour discovery that resolving a backend takes.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Config;
use crate::netlink;

pub mod host;
pub mod interfaces;
pub mod paths;

/// How long next hops may take together.
const NEXT_HOPS: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was looked at, for example `eth0: driver`, `backend 10.0.0.11 of web: next hop`.
    pub what: String,
    /// What was found.
    pub found: String,
    /// The command or setting that mends it; empty when nothing is wrong.
    pub mend: String,
}

impl Finding {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            what: what.into(),
            found: found.into(),
            mend: String::new(),
        }
    }

    fn warning(what: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            what: what.into(),
            found: found.into(),
            mend: mend.into(),
        }
    }

    fn error(what: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            what: what.into(),
            found: found.into(),
            mend: mend.into(),
        }
    }
}

/// Looks at this host, in the network namespace of the calling thread, with a resolved configuration in hand.
/// Takes about two seconds when a backend cannot be resolved, else milliseconds.
pub async fn run(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        host::kernel(&host::release()),
        host::capabilities(&host::effective()),
        host::bpffs(
            &fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
            &config.node.pin,
        ),
    ];
    findings.extend(host::jit(
        fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
            .ok()
            .as_deref(),
    ));
    findings.push(host::grace_periods(crate::dataplane::grace::wait()));
    findings.push(host::hash_seed(&config.node));

    let present = match netlink::interface::interfaces().await {
        Ok(present) => present,
        Err(error) => {
            findings.push(Finding::error(
                "interfaces",
                format!("{error:#}"),
                "netlink must be permitted: look at the service's seccomp and RestrictAddressFamilies settings",
            ));
            return findings;
        }
    };
    for name in &config.node.interfaces {
        let interface = present.iter().find(|interface| interface.name == *name);
        findings.extend(interfaces::judge(
            name,
            interface,
            &present,
            config.node.xdp_mode,
        ));
        if interface.is_some() {
            findings.extend(interfaces::rp_filter(
                name,
                rp_filter(name),
                config.node.interfaces.len(),
            ));
        }
    }

    findings.extend(paths::sources(&config.node.source, &present));
    findings.extend(paths::vips(&config.services, &present));
    let backends: HashSet<IpAddr> = config
        .services
        .iter()
        .flat_map(|service| &service.backends)
        .map(|backend| backend.address)
        .collect();
    match netlink::resolve_within(backends, NEXT_HOPS).await {
        Ok(states) => {
            for service in &config.services {
                findings.extend(paths::backends(service, &states, &config.node, &present));
            }
        }
        Err(error) => findings.push(Finding::error(
            "next hops",
            format!("{error:#}"),
            "run this as root, or with CAP_NET_ADMIN",
        )),
    }
    findings
}

/// The reverse-path filter in force: the kernel takes the higher of `all` and the interface's own.
fn rp_filter(interface: &str) -> u8 {
    // Not through the async file system: its threads may live in another network namespace.
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // A dot in an interface's name (a VLAN's) is a dot in this path as well.
    read("all").unwrap_or(0).max(read(interface).unwrap_or(0))
}
