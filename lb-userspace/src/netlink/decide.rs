//! Reads a next hop out of what the kernel says. Pure.
//!
//! Owns: which answers make a next hop, and the words for those that do not. Does not own: asking, or when.

use std::collections::HashMap;
use std::net::IpAddr;

use rtnetlink::packet_route::route::RouteType;

use super::NextHop;
use super::kernel::{Found, Link, Neighbour, NeighbourKey, Route};

/// What the kernel's tables say of one address now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The way is known; `stale`: the neighbour should be confirmed now and then.
    Known {
        next_hop: NextHop,
        neighbour: NeighbourKey,
        stale: bool,
    },
    /// All is known but the neighbour's MAC. `failed`: the kernel asked in vain.
    Asking {
        neighbour: NeighbourKey,
        failed: bool,
        words: String,
    },
    /// No way, whatever the neighbours say.
    Impossible(String),
}

/// What the tables say of `address`. `last` is the interface that led there before, if one did: it may explain
/// why nothing does now.
pub fn decide(
    address: IpAddr,
    route: &Route,
    links: &HashMap<u32, Link>,
    neighbours: &HashMap<NeighbourKey, Neighbour>,
    last: Option<u32>,
) -> Verdict {
    let found = match route {
        Route::Refused(why) => {
            let mut words = format!("{why} {address}");
            // An interface that goes down takes its routes with it: name the cause, not only the consequence.
            if let Some(link) = last
                .and_then(|ifindex| links.get(&ifindex))
                .filter(|link| !link.up)
            {
                words += &format!(" ({}, which led there, is down)", link.name);
            }
            return Verdict::Impossible(words);
        }
        Route::Found(found) => found,
    };
    if found.encapsulated {
        return Verdict::Impossible(format!(
            "the route to {address} makes the kernel encapsulate, which XDP cannot do for it: give it a plain route"
        ));
    }
    let &Found {
        kind,
        ifindex,
        gateway,
        source,
        mtu,
        ..
    } = found;
    match kind {
        RouteType::Unicast => {}
        RouteType::Local => {
            return Verdict::Impossible(format!(
                "{address} is an address of this host; a backend must be another host"
            ));
        }
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            let kind = format!("{kind:?}").to_lowercase();
            return Verdict::Impossible(format!(
                "{address} is a {kind} address, not that of one backend"
            ));
        }
        _ => return Verdict::Impossible(format!("no usable route to {address}")),
    }

    let Some(link) = links.get(&ifindex) else {
        return Verdict::Impossible(format!("the interface towards {address} is gone"));
    };
    let name = &link.name;
    if !link.up {
        return Verdict::Impossible(format!("{name}, which leads to {address}, is down"));
    }
    if !link.carrier {
        return Verdict::Impossible(format!("{name}, which leads to {address}, has no carrier"));
    }
    // A VLAN interface is taken as it is: the frame is handed to the VLAN device, or, where the data path knows the
    // tag, to its parent. Which one is the data path's business; the MACs are the same.
    let Some(source_mac) = link.mac.filter(|_| !link.loopback) else {
        return Verdict::Impossible(format!(
            "{name}, which leads to {address}, is not an Ethernet interface"
        ));
    };
    let Some(source) = source else {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        return Verdict::Impossible(format!(
            "this host has no {family} address to send from towards {address}: give {name} one"
        ));
    };

    let neighbour = NeighbourKey {
        ifindex,
        address: gateway.unwrap_or(address),
    };
    let entry = neighbours.get(&neighbour);
    if let Some((destination_mac, stale)) = entry.and_then(|entry| Some((entry.mac?, entry.stale)))
    {
        let next_hop = NextHop {
            ifindex,
            interface: name.clone(),
            source_mac,
            destination_mac,
            mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            source,
            on_link: gateway.is_none(),
            xdp_transmit: link.xdp_transmit,
        };
        return Verdict::Known {
            next_hop,
            neighbour,
            stale,
        };
    }
    let failed = entry.is_some_and(|entry| entry.failed);
    let who = match gateway {
        Some(gateway) => format!("gateway {gateway}"),
        None => address.to_string(),
    };
    let how = if neighbour.address.is_ipv4() {
        "ARP"
    } else {
        "neighbour discovery"
    };
    let words = if failed {
        format!("{who} on {name} does not answer {how}")
    } else {
        format!("{who} on {name} has not answered {how} yet")
    };
    Verdict::Asking {
        neighbour,
        failed,
        words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    struct Host {
        links: HashMap<u32, Link>,
        neighbours: HashMap<NeighbourKey, Neighbour>,
    }

    fn host() -> Host {
        let link = Link {
            name: "eth0".into(),
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            xdp_transmit: super::super::XdpTransmit::Yes,
        };
        Host {
            links: HashMap::from([(2, link)]),
            neighbours: HashMap::new(),
        }
    }

    impl Host {
        fn link(mut self, change: impl FnOnce(&mut Link)) -> Self {
            change(self.links.get_mut(&2).unwrap());
            self
        }

        fn neighbour(mut self, ip: &str, mac: Option<[u8; 6]>, failed: bool) -> Self {
            let key = NeighbourKey {
                ifindex: 2,
                address: ip.parse().unwrap(),
            };
            self.neighbours.insert(
                key,
                Neighbour {
                    mac,
                    failed,
                    stale: false,
                },
            );
            self
        }

        fn decide(&self, address: &str, route: &Route) -> Verdict {
            decide(
                address.parse().unwrap(),
                route,
                &self.links,
                &self.neighbours,
                Some(2),
            )
        }

        fn refusal(&self, address: &str, route: &Route) -> String {
            match self.decide(address, route) {
                Verdict::Impossible(words) => words,
                other => panic!("{other:?}"),
            }
        }
    }

    fn plain() -> Found {
        Found {
            kind: RouteType::Unicast,
            ifindex: 2,
            gateway: None,
            source: Some("10.0.0.10".parse().unwrap()),
            mtu: None,
            encapsulated: false,
        }
    }

    fn via(gateway: &str) -> Route {
        Route::Found(Found {
            gateway: Some(gateway.parse().unwrap()),
            ..plain()
        })
    }

    fn direct() -> Route {
        Route::Found(plain())
    }

    #[test]
    fn on_link_and_through_a_gateway() {
        let host =
            host()
                .neighbour("10.0.0.11", Some(MAC), false)
                .neighbour("fe80::1", Some(MAC), false);
        let Verdict::Known { next_hop, .. } = host.decide("10.0.0.11", &direct()) else {
            panic!()
        };
        assert_eq!(
            (next_hop.destination_mac, next_hop.on_link, next_hop.mtu),
            (MAC, true, 1500)
        );
        // An IPv4 backend behind an IPv6 gateway.
        let Verdict::Known {
            next_hop,
            neighbour,
            ..
        } = host.decide("10.9.0.1", &via("fe80::1"))
        else {
            panic!()
        };
        assert!(!next_hop.on_link);
        assert_eq!(neighbour.address, "fe80::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_route_lowers_the_mtu_but_never_raises_it() {
        let host = host().neighbour("10.0.0.11", Some(MAC), false);
        for (route_mtu, expected) in [(1400, 1400), (9000, 1500)] {
            let Verdict::Known { next_hop, .. } = host.decide(
                "10.0.0.11",
                &Route::Found(Found {
                    mtu: Some(route_mtu),
                    ..plain()
                }),
            ) else {
                panic!()
            };
            assert_eq!(next_hop.mtu, expected);
        }
    }

    #[test]
    fn a_silent_neighbour_is_named_with_its_interface() {
        let asking = |host: &Host, route: &Route| match host.decide("10.9.0.1", route) {
            Verdict::Asking { failed, words, .. } => (failed, words),
            other => panic!("{other:?}"),
        };
        let gateway = via("10.0.0.1");
        assert_eq!(
            asking(&host(), &gateway),
            (
                false,
                "gateway 10.0.0.1 on eth0 has not answered ARP yet".into()
            )
        );
        let failed = host()
            .neighbour("10.0.0.1", None, true)
            .neighbour("fe80::1", None, true);
        assert_eq!(
            asking(&failed, &gateway),
            (true, "gateway 10.0.0.1 on eth0 does not answer ARP".into())
        );
        assert_eq!(
            asking(&failed, &via("fe80::1")),
            (
                true,
                "gateway fe80::1 on eth0 does not answer neighbour discovery".into()
            )
        );
    }

    #[test]
    fn what_cannot_work_says_why() {
        let up = host();
        assert_eq!(
            up.refusal("192.0.2.1", &Route::Refused("no route to")),
            "no route to 192.0.2.1"
        );
        assert_eq!(
            host()
                .link(|link| link.up = false)
                .refusal("192.0.2.1", &Route::Refused("no route to")),
            "no route to 192.0.2.1 (eth0, which led there, is down)"
        );
        assert_eq!(
            up.refusal(
                "10.0.0.1",
                &Route::Found(Found {
                    kind: RouteType::Local,
                    ..plain()
                })
            ),
            "10.0.0.1 is an address of this host; a backend must be another host"
        );
        assert_eq!(
            up.refusal(
                "10.0.0.255",
                &Route::Found(Found {
                    kind: RouteType::Broadcast,
                    ..plain()
                })
            ),
            "10.0.0.255 is a broadcast address, not that of one backend"
        );
        assert!(
            up.refusal(
                "10.0.0.2",
                &Route::Found(Found {
                    encapsulated: true,
                    ..plain()
                })
            )
            .contains("plain route")
        );
        assert_eq!(
            up.refusal(
                "10.0.0.2",
                &Route::Found(Found {
                    source: None,
                    ..plain()
                })
            ),
            "this host has no IPv4 address to send from towards 10.0.0.2: give eth0 one"
        );
        assert_eq!(
            host()
                .link(|link| link.carrier = false)
                .refusal("10.0.0.2", &direct()),
            "eth0, which leads to 10.0.0.2, has no carrier"
        );
        assert_eq!(
            host()
                .link(|link| link.mac = None)
                .refusal("10.0.0.2", &direct()),
            "eth0, which leads to 10.0.0.2, is not an Ethernet interface"
        );
    }
}
