//! Who may get new flows, and why not; and the route that leads to a backend.

use std::net::IpAddr;

use lb_common::abi::Route;
use lb_common::encap::Way;

use super::{EffectiveBackend, Observed};
use crate::model::{Admin, Forward, Health, NodeSpec, ServiceSpec};
use crate::netlink::{NextHop, NextHopState};

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
    let way = way(hop);
    let v6 = service.key.vip.is_ipv6();
    match service.forward {
        Forward::L2 if !hop.on_link => Err(format!(
            "forward = \"l2\" needs the backend on a link of this node, but it is behind a gateway on {}",
            hop.interface
        )),
        Forward::L2 => Ok(Route::l2(&way, v6)),
        Forward::Ipip => {
            let configured = node
                .source
                .iter()
                .find(|source| source.is_ipv4() == address.is_ipv4());
            let source = configured.copied().unwrap_or(hop.source);
            Route::ipip(&way, v6, source, address).ok_or_else(|| {
                format!("no source address of the family of {address}: set node.source")
            })
        }
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
