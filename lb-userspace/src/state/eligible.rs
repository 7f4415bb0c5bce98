//! Who may get new flows, and why not; and the route that leads to a backend.

use std::fmt;
use std::net::IpAddr;

use lb_common::abi::Route;
use lb_common::encap::Way;

use super::{EffectiveBackend, Observed};
use crate::model::{Admin, Forward, Health, NodeSpec, ServiceSpec, XdpMode};
use crate::netlink::{NextHop, NextHopState, XdpTransmit};

/// `Ok`: may get new flows. `Err`: why not, in words for an operator.
pub fn eligibility(
    node: &NodeSpec,
    service: &ServiceSpec,
    backend: &EffectiveBackend,
    observed: Option<&Observed>,
    next_hop: Option<&NextHopState>,
) -> Result<(), String> {
    match backend.admin.admin {
        Admin::Active => {}
        admin => {
            let reason = backend
                .admin
                .reason
                .as_ref()
                .map(|r| format!(": {r}"))
                .unwrap_or_default();
            return Err(format!("{admin}{reason}"));
        }
    }
    if backend.weight == 0 {
        return Err("weight is 0".to_owned());
    }
    match observed {
        Some(Observed {
            health: Health::Up, ..
        }) => {}
        Some(Observed {
            health: Health::Down,
            reason,
            ..
        }) => return Err(format!("probes fail: {reason}")),
        Some(Observed {
            health: Health::Unknown,
            ..
        })
        | None => return Err("not probed yet".to_owned()),
    }
    route(node, service, backend.address, next_hop).map(|_| ())
}

/// Whether nothing but its failing probes keeps a backend from being eligible.
pub fn only_down(
    node: &NodeSpec,
    service: &ServiceSpec,
    backend: &EffectiveBackend,
    observed: Option<&Observed>,
    next_hop: Option<&NextHopState>,
) -> bool {
    let Some(
        down @ Observed {
            health: Health::Down,
            ..
        },
    ) = observed
    else {
        return false;
    };
    let healthy = Observed {
        health: Health::Up,
        ..down.clone()
    };
    eligibility(node, service, backend, Some(&healthy), next_hop).is_ok()
}

/// The route to a backend: ready-made outer header and egress.
pub fn route(
    node: &NodeSpec,
    service: &ServiceSpec,
    address: IpAddr,
    next_hop: Option<&NextHopState>,
) -> Result<Route, String> {
    let hop = match next_hop {
        Some(NextHopState::Resolved(hop)) => hop,
        Some(NextHopState::Unresolved(why)) => return Err(format!("next hop unknown: {why}")),
        None => return Err("next hop not looked up yet".to_owned()),
    };
    transmits(node, hop).map_err(|mute| mute.to_string())?;
    let way = way(hop);
    let v6 = service.key.vip.is_ipv6();
    match service.forward {
        Forward::L2 if !hop.on_link => Err(format!(
            "forward = \"l2\" needs the backend on a link of this node, but it is behind a gateway on {}",
            hop.interface
        )),
        Forward::L2 => Ok(Route::l2(&way, v6)),
        Forward::Ipip | Forward::Gue => {
            let configured = node
                .source
                .iter()
                .find(|source| source.is_ipv4() == address.is_ipv4());
            let source = configured.copied().unwrap_or(hop.source);
            let route = if service.forward == Forward::Gue {
                Route::gue(&way, v6, source, address)
            } else {
                Route::ipip(&way, v6, source, address)
            };
            route.ok_or_else(|| {
                format!("no source address of the family of {address}: set node.source")
            })
        }
    }
}

/// Why frames that are redirected to an egress interface do not leave it, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mute {
    pub found: String,
    pub mend: String,
}

impl fmt::Display for Mute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found, self.mend)
    }
}

/// Whether what is redirected to the egress interface leaves it. What does not is lost, and counted as forwarded.
///
/// Which attachment a packet comes by is not known here, nor whether `auto` got the native mode: unless the generic mode is
/// asked for, or there is no interface but the egress itself (then nothing is redirected), it must be able to.
pub fn transmits(node: &NodeSpec, hop: &NextHop) -> Result<(), Mute> {
    let egress = &hop.interface;
    if node.xdp_mode == XdpMode::Generic || node.interfaces.iter().all(|name| name == egress) {
        return Ok(());
    }
    match hop.xdp_transmit {
        XdpTransmit::Yes | XdpTransmit::Unknown => Ok(()),
        XdpTransmit::WithProgram if node.interfaces.contains(egress) => Ok(()),
        XdpTransmit::WithProgram => Err(Mute {
            found: format!(
                "{egress} transmits XDP frames only while an XDP program is attached to it (of a veth pair: to its other end)"
            ),
            mend: format!(
                "add \"{egress}\" to node.interfaces, or set node.xdp_mode = \"generic\""
            ),
        }),
        XdpTransmit::No => Err(Mute {
            found: format!("{egress} cannot transmit XDP frames"),
            mend: "set node.xdp_mode = \"generic\", or route to the backends through the device below it"
                .to_owned(),
        }),
    }
}

const fn way(hop: &NextHop) -> Way {
    Way {
        ifindex: hop.ifindex,
        mtu: hop.mtu,
        source_mac: hop.source_mac,
        destination_mac: hop.destination_mac,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(interfaces: &[&str], mode: XdpMode, can: XdpTransmit) -> Result<(), String> {
        let node = NodeSpec {
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            xdp_mode: mode,
            source: Vec::new(),
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
            icmp_echo: lb_common::service::Echo::default(),
        };
        let hop = NextHop {
            ifindex: 3,
            interface: "back".into(),
            source_mac: [2; 6],
            destination_mac: [4; 6],
            mtu: 1_600,
            source: "10.0.0.1".parse().unwrap(),
            on_link: true,
            xdp_transmit: can,
        };
        transmits(&node, &hop).map_err(|mute| mute.to_string())
    }

    #[test]
    fn an_egress_that_transmits_no_xdp_frames_is_none() {
        use XdpTransmit::{No, Unknown, WithProgram, Yes};
        for mode in [XdpMode::Auto, XdpMode::Native] {
            for interfaces in [&["front"][..], &["front", "back"]] {
                let why = verdict(interfaces, mode, No).unwrap_err();
                assert!(
                    why.contains("back cannot transmit") && why.contains("\"generic\""),
                    "{why}"
                );
                for can in [Yes, Unknown] {
                    assert_eq!(verdict(interfaces, mode, can), Ok(()));
                }
            }
            let why = verdict(&["front"], mode, WithProgram).unwrap_err();
            assert!(why.contains("add \"back\" to node.interfaces"), "{why}");
            assert_eq!(verdict(&["front", "back"], mode, WithProgram), Ok(()));
            assert_eq!(
                verdict(&["back"], mode, No),
                Ok(()),
                "nothing is redirected"
            );
        }
        assert_eq!(verdict(&["front"], XdpMode::Generic, No), Ok(()));
    }
}
