//! What maps say that an earlier daemon filled: enough to carry on where it stopped, wherever that was.
//!
//! Pure. Does not own: where maps are found (`pins`), nor what is made of it (`plan::Installed::adopt`, `state`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::{Backend, Encap, Identity, Route, ServiceEntry};
use lb_common::address::Address;
use lb_common::service::Service;
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Head, Status};

/// Bits of [`Identity::rest`].
const ADDRESS_V6: u64 = 1;
const MAGLEV_V6: u64 = 2;

/// Who a backend is, in the control plane's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub address: IpAddr,
    /// What its slots are computed from; mostly its address.
    pub identity: IpAddr,
    pub weight: u32,
}

impl From<Who> for Identity {
    fn from(who: Who) -> Self {
        let (address, maglev) = (Address::from(who.address), Address::from(who.identity));
        let families =
            if address.v6 { ADDRESS_V6 } else { 0 } | if maglev.v6 { MAGLEV_V6 } else { 0 };
        Self {
            address: address.words,
            maglev: maglev.words,
            rest: families | (u64::from(who.weight) << 32),
        }
    }
}

impl From<Identity> for Who {
    fn from(identity: Identity) -> Self {
        let ip = |words, v6| IpAddr::from(Address { words, v6 });
        Self {
            address: ip(identity.address, identity.rest & ADDRESS_V6 != 0),
            identity: ip(identity.maglev, identity.rest & MAGLEV_V6 != 0),
            weight: (identity.rest >> 32) as u32,
        }
    }
}

/// A record in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundBackend {
    pub id: u32,
    /// Number of its service.
    pub service: u32,
    pub status: Status,
    /// The one in force; `None`: none was known.
    pub route: Option<Route>,
    pub who: Who,
}

/// A data plane as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The service table in force.
    pub entries: Vec<ServiceEntry>,
    /// By id.
    pub backends: Vec<FoundBackend>,
    /// For each service, by number, the primaries of its slots.
    pub primaries: BTreeMap<u32, Vec<u32>>,
    /// Slots that are not STEADY: what they remember of flows counts.
    pub in_change: u64,
}

impl Found {
    /// `record` reads a backend's record and identity; `slot` a slot word.
    pub fn read(
        entries: Vec<ServiceEntry>,
        backends: u32,
        record: impl Fn(u32) -> (Backend, Identity),
        slot: impl Fn(u32) -> SlotWord,
    ) -> Self {
        let mut found = Self::default();
        // No backend has id 0.
        for id in 1..backends {
            let (backend, identity) = record(id);
            let head = Head(backend.head);
            if head.service() == 0 {
                continue;
            }
            let route = backend.routes[head.route()];
            found.backends.push(FoundBackend {
                id,
                service: head.service(),
                status: head.status(),
                route: (route.encap != Encap::None as u16).then_some(route),
                who: identity.into(),
            });
        }
        for entry in &entries {
            let service = Service::from(entry);
            if entry.tuple().is_none_or(|tuple| tuple.protocol == 0) {
                continue;
            }
            let words = (0..service.slots).map(|i| slot(service.first_slot + i));
            let primaries = words
                .inspect(|word| {
                    if word.mode() != Mode::Steady {
                        found.in_change += 1;
                    }
                })
                .map(SlotWord::primary)
                .collect();
            found.primaries.insert(service.number, primaries);
        }
        found.entries = entries;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_backend_is_survives_the_map() {
        for (address, identity, weight) in [
            ("10.0.0.1", "10.0.0.1", 1),
            ("2001:db8::1", "10.0.0.7", 1_000),
            ("10.0.0.1", "2001:db8::1", 0),
            ("::ffff:10.0.0.1", "10.0.0.1", 7),
        ] {
            let who = Who {
                address: address.parse().unwrap(),
                identity: identity.parse().unwrap(),
                weight,
            };
            let words = Identity::from(who).words();
            assert_eq!(Who::from(Identity::from_words(words)), who);
        }
    }
}
