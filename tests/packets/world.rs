//! The one world that every case runs in: services of each family, protocol and forwarding mode, and some that are broken on
//! purpose.
//!
//! Owns: what is programmed. Does not own: what the outer headers must be (`outer`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Route, ServiceEntry};
use lb_common::address::Address;
use lb_common::encap::Way;
use lb_common::service::{Echo, Service as Found, ServiceTuple, VipNote, vip_bit};
use lb_common::slot::SlotWord;
use lb_common::track::{Status, TableWord};
use lb_userspace::dataplane::Operation;
use lb_userspace::model::Capacity;

use crate::frame::{TCP, UDP};
use crate::outer::Mode;

pub const SEED: &str = "golden";
pub const CAPACITY: Capacity = Capacity {
    services: 64,
    backends: 64,
    slots: 8_192,
    flows: 0,
};
/// Loopback: where BPF_PROG_TEST_RUN says that frames came in.
pub const INGRESS: u32 = 1;

pub const WEB4: &str = "203.0.113.10";
pub const WEB6: &str = "2001:db8:10::1";
/// Every port of one protocol, and one port of its own.
pub const ANY4: &str = "203.0.113.11";
pub const ANY6: &str = "2001:db8:10::2";
/// Several backends.
pub const MANY4: &str = "203.0.113.12";
pub const MANY6: &str = "2001:db8:10::3";
/// Services that cannot forward.
pub const BROKEN4: &str = "203.0.113.13";
pub const BROKEN6: &str = "2001:db8:10::4";
/// Reached through GUE.
pub const GUE4: &str = "203.0.113.14";
pub const GUE6: &str = "2001:db8:10::5";

/// Not one of ours.
pub const STRANGER4: &str = "203.0.113.99";
pub const STRANGER6: &str = "2001:db8:10::99";

/// Ports of the broken services.
pub mod broken {
    pub const EMPTY: u16 = 80;
    pub const NEVER_FILLED: u16 = 81;
    pub const STALE_SLOT: u16 = 82;
    pub const NO_ROUTE: u16 = 83;
    pub const TINY_IPIP: u16 = 84;
    pub const NO_EGRESS: u16 = 85;
    pub const SLOTS_OUT_OF_BOUNDS: u16 = 86;
    pub const BACKEND_OUT_OF_BOUNDS: u16 = 87;
    pub const TINY_L2: u16 = 88;
    pub const TINY_GUE: u16 = 89;
}

/// MTU behind the services on `TINY_*`.
pub const TINY_MTU: u16 = 200;

/// Where a backend's packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The interface they came in by.
    Ingress,
    /// Another one, in the device map.
    Other,
    /// One that is not in the device map.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pub id: u32,
    pub service: u32,
    pub mode: Mode,
    pub via: Via,
    pub mtu: u16,
}

/// What a service's slots name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    /// The service's backends in turn; this many slots.
    Backends(u32),
    /// No slots at all.
    None,
    /// One slot naming this id.
    Name(u32),
    /// Behind the end of the map.
    OutOfBounds,
}

#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub number: u32,
    pub vip: &'static str,
    /// 0: every port.
    pub port: u16,
    pub protocol: u8,
    pub client_affinity: bool,
    slots: Slots,
}

const fn service(number: u32, vip: &'static str, port: u16, protocol: u8, slots: Slots) -> Service {
    Service {
        number,
        vip,
        port,
        protocol,
        client_affinity: false,
        slots,
    }
}

/// A backend of service 1, which a slot of another service names.
const STALE: u32 = 1;

pub const SERVICES: &[Service] = &[
    service(1, WEB4, 80, TCP, Slots::Backends(7)),
    service(2, WEB4, 53, UDP, Slots::Backends(7)),
    service(3, ANY4, 0, TCP, Slots::Backends(7)),
    service(4, ANY4, 8080, TCP, Slots::Backends(7)),
    service(5, WEB6, 80, TCP, Slots::Backends(7)),
    service(6, WEB6, 53, UDP, Slots::Backends(7)),
    service(7, ANY6, 0, UDP, Slots::Backends(7)),
    Service {
        client_affinity: true,
        ..service(8, MANY4, 0, TCP, Slots::Backends(1_021))
    },
    service(9, MANY6, 80, TCP, Slots::Backends(1_021)),
    service(10, MANY4, 53, UDP, Slots::Backends(1_021)),
    Service {
        client_affinity: true,
        ..service(11, MANY6, 0, UDP, Slots::Backends(1_021))
    },
    service(20, BROKEN4, broken::EMPTY, TCP, Slots::None),
    service(21, BROKEN4, broken::NEVER_FILLED, TCP, Slots::Name(0)),
    service(22, BROKEN4, broken::STALE_SLOT, TCP, Slots::Name(STALE)),
    service(23, BROKEN4, broken::NO_ROUTE, TCP, Slots::Backends(7)),
    service(24, BROKEN4, broken::TINY_IPIP, TCP, Slots::Backends(7)),
    service(25, BROKEN4, broken::NO_EGRESS, TCP, Slots::Backends(7)),
    service(
        26,
        BROKEN4,
        broken::SLOTS_OUT_OF_BOUNDS,
        TCP,
        Slots::OutOfBounds,
    ),
    service(
        27,
        BROKEN4,
        broken::BACKEND_OUT_OF_BOUNDS,
        TCP,
        Slots::Name(100_000),
    ),
    service(28, BROKEN4, broken::TINY_L2, TCP, Slots::Backends(7)),
    service(29, BROKEN6, broken::EMPTY, UDP, Slots::None),
    service(30, BROKEN6, broken::TINY_IPIP, UDP, Slots::Backends(7)),
    service(31, BROKEN6, broken::NO_ROUTE, UDP, Slots::Backends(7)),
    service(32, BROKEN4, broken::TINY_GUE, TCP, Slots::Backends(7)),
    service(33, BROKEN6, broken::TINY_GUE, UDP, Slots::Backends(7)),
    service(40, GUE4, 80, TCP, Slots::Backends(7)),
    service(41, GUE4, 53, UDP, Slots::Backends(7)),
    service(42, GUE6, 80, TCP, Slots::Backends(7)),
    service(43, GUE6, 53, UDP, Slots::Backends(7)),
];

const fn backend(id: u32, service: u32, mode: Mode, via: Via) -> Backend {
    Backend {
        id,
        service,
        mode,
        via,
        mtu: 1_500,
    }
}

pub const BACKENDS: &[Backend] = &[
    backend(1, 1, Mode::V4, Via::Ingress),
    backend(2, 2, Mode::V6, Via::Other),
    backend(3, 3, Mode::L2, Via::Other),
    backend(4, 4, Mode::V6, Via::Ingress),
    backend(5, 5, Mode::V6, Via::Ingress),
    backend(6, 6, Mode::V4, Via::Other),
    backend(7, 7, Mode::L2, Via::Ingress),
    backend(8, 8, Mode::V4, Via::Ingress),
    backend(9, 8, Mode::V6, Via::Other),
    backend(10, 8, Mode::L2, Via::Ingress),
    backend(11, 9, Mode::V6, Via::Ingress),
    backend(12, 9, Mode::V4, Via::Ingress),
    backend(13, 9, Mode::L2, Via::Other),
    backend(14, 10, Mode::V6, Via::Ingress),
    backend(15, 10, Mode::V6, Via::Other),
    backend(16, 11, Mode::V6, Via::Ingress),
    backend(17, 11, Mode::V6, Via::Other),
    backend(18, 11, Mode::V4, Via::Other),
    backend(23, 23, Mode::Nowhere, Via::Unknown),
    Backend {
        mtu: TINY_MTU,
        ..backend(24, 24, Mode::V4, Via::Ingress)
    },
    backend(25, 25, Mode::V4, Via::Unknown),
    Backend {
        mtu: TINY_MTU,
        ..backend(28, 28, Mode::L2, Via::Ingress)
    },
    Backend {
        mtu: TINY_MTU,
        ..backend(30, 30, Mode::V6, Via::Ingress)
    },
    backend(31, 31, Mode::Nowhere, Via::Unknown),
    Backend {
        mtu: TINY_MTU,
        ..backend(32, 32, Mode::Gue4, Via::Ingress)
    },
    Backend {
        mtu: TINY_MTU,
        ..backend(33, 33, Mode::Gue6, Via::Ingress)
    },
    backend(40, 40, Mode::Gue4, Via::Ingress),
    backend(41, 41, Mode::Gue6, Via::Other),
    backend(42, 42, Mode::Gue6, Via::Ingress),
    backend(43, 43, Mode::Gue4, Via::Other),
];

pub fn backend_of(id: u32) -> &'static Backend {
    BACKENDS
        .iter()
        .find(|b| b.id == id)
        .expect("a backend of this world")
}

/// The service of a packet, as the contract says: its port first, then every port.
pub fn service_of(destination: IpAddr, port: u16, protocol: u8) -> Option<&'static Service> {
    let of = |port| {
        SERVICES.iter().find(|s| {
            s.vip.parse::<IpAddr>() == Ok(destination) && s.port == port && s.protocol == protocol
        })
    };
    of(port).or_else(|| of(0))
}

pub fn is_vip(address: IpAddr) -> bool {
    SERVICES
        .iter()
        .any(|s| s.vip.parse::<IpAddr>() == Ok(address))
}

/// What happens to echo requests to this VIP.
pub fn echo_of(vip: &str) -> Echo {
    match vip {
        ANY4 | ANY6 => Echo::Pass,
        MANY4 | MANY6 => Echo::Drop,
        _ => Echo::Reply,
    }
}

pub const SOURCE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
pub const SOURCE_MAC: [u8; 6] = [0x02, 0xff, 0, 0, 0, 0x01];

impl Backend {
    pub const fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, self.id as u8)
    }

    pub const fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, self.id as u16)
    }

    pub const fn mac(&self) -> [u8; 6] {
        [0x02, 0, 0, 0, 1, self.id as u8]
    }

    /// The interface of its route; `other`: the one that packets may be redirected to.
    fn ifindex(&self, other: u32) -> u32 {
        match self.via {
            Via::Ingress => INGRESS,
            Via::Other => other,
            Via::Unknown => 9_999,
        }
    }

    fn route(&self, other: u32) -> Route {
        let way = Way {
            ifindex: self.ifindex(other),
            mtu: self.mtu.into(),
            source_mac: SOURCE_MAC,
            destination_mac: self.mac(),
        };
        let service = SERVICES
            .iter()
            .find(|s| s.number == self.service)
            .expect("its service");
        let inner_v6 = service.vip.contains(':');
        let tunnel = |source: IpAddr, destination: IpAddr| {
            Route::ipip(&way, inner_v6, source, destination).expect("one family")
        };
        let gue = |source: IpAddr, destination: IpAddr| {
            Route::gue(&way, inner_v6, source, destination).expect("one family")
        };
        match self.mode {
            Mode::V4 => tunnel(SOURCE4.into(), self.v4().into()),
            Mode::V6 => tunnel(SOURCE6.into(), self.v6().into()),
            Mode::Gue4 => gue(SOURCE4.into(), self.v4().into()),
            Mode::Gue6 => gue(SOURCE6.into(), self.v6().into()),
            Mode::L2 => Route::l2(&way, inner_v6),
            Mode::Nowhere => Route::NONE,
        }
    }
}

/// Everything the daemon would do to make this world.
pub fn operations(other: u32) -> Vec<Operation> {
    let mut operations = vec![Operation::AllowEgress { ifindex: other }];
    for backend in BACKENDS {
        // An older route first: packets must follow the one that was put in force last.
        let old = Backend {
            id: 250,
            ..*backend
        };
        for route in [old.route(other), backend.route(other)] {
            operations.push(Operation::WriteBackend {
                id: backend.id,
                service: backend.service,
                status: Status::Active,
                route,
                table: TableWord::default(),
            });
        }
    }
    let mut entries = Vec::new();
    let mut next_slot = 0;
    for service in SERVICES {
        let ids: Vec<u32> = BACKENDS
            .iter()
            .filter(|b| b.service == service.number)
            .map(|b| b.id)
            .collect();
        let (first_slot, names): (u32, Vec<u32>) = match service.slots {
            Slots::Backends(n) => (
                next_slot,
                (0..n).map(|i| ids[i as usize % ids.len()]).collect(),
            ),
            Slots::None => (next_slot, Vec::new()),
            Slots::Name(id) => (next_slot, vec![id]),
            Slots::OutOfBounds => (CAPACITY.slots, Vec::new()),
        };
        let slots = if service.slots == Slots::OutOfBounds {
            7
        } else {
            names.len() as u32
        };
        let words = names
            .iter()
            .enumerate()
            .map(|(i, id)| (first_slot + i as u32, SlotWord::steady(*id)));
        operations.push(Operation::WriteSlots {
            slots: words.collect(),
        });
        next_slot += names.len() as u32;
        let tuple = ServiceTuple {
            address: address(service.vip),
            port: service.port.to_be(),
            protocol: service.protocol,
        };
        let found = Found {
            number: service.number,
            client_affinity: service.client_affinity,
            first_slot,
            slots,
            flow_idle: 1_734,
        };
        entries.push(ServiceEntry::service(&tuple, found));
    }
    let mut vips: Vec<&str> = SERVICES.iter().map(|s| s.vip).collect();
    vips.sort_unstable();
    vips.dedup();
    for vip in vips {
        let protocols = SERVICES
            .iter()
            .filter(|s| s.vip == vip)
            .fold(0, |bits, s| bits | vip_bit(s.protocol));
        let note = VipNote::new(protocols, echo_of(vip));
        entries.push(ServiceEntry::vip(address(vip), note));
    }
    operations.push(Operation::SetServices { entries });
    operations
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}
