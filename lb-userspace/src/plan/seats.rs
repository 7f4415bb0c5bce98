//! Who shares a lookup table: identities, weights, and whose backend each identity is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{DesiredBackend, DesiredService, InstalledService};
use crate::maglev::Member;
use crate::model::OnEmpty;

/// Who shares the table, and whose backend each is.
pub(super) fn seats(
    desired: &DesiredService,
    old: Option<&InstalledService>,
) -> Vec<(Member, IpAddr)> {
    let seat = |backend: &DesiredBackend| {
        let member = Member {
            identity: backend.identity,
            weight: backend.weight,
        };
        (member, backend.address)
    };
    let those = |who: fn(&DesiredBackend) -> bool| -> Vec<_> {
        let chosen = desired.backends.iter().filter(|b| who(b));
        chosen.map(seat).collect()
    };
    let mut seats = those(|b| b.eligible);
    if seats.is_empty() && desired.on_empty == OnEmpty::Keep {
        // Probes that fail everywhere say more of the prober than of the backends: health is ignored. It fails one backend
        // after the other, so the last table would be the last survivor's alone (docs/decisions/0013-on-empty.md).
        seats = those(|b| b.only_down);
    }
    if seats.is_empty() && desired.on_empty == OnEmpty::Keep {
        // Nobody can be reached, or is wanted: the last table stays, less those that were removed or disabled.
        let staying = desired.backends.iter().filter(|b| b.may_keep);
        let staying: BTreeMap<_, _> = staying.map(|b| (b.identity, b.address)).collect();
        let last = old.map_or(&[][..], |old| &old.members);
        seats = last
            .iter()
            .filter_map(|m| Some((*m, *staying.get(&m.identity)?)))
            .collect();
    }
    seats.sort_by_key(|(member, _)| member.identity);
    seats
}

/// The members by their backends' addresses.
pub(super) fn held(members: &[Member], holders: &[IpAddr]) -> Vec<Member> {
    let held = |(member, holder): (&Member, &IpAddr)| Member {
        identity: *holder,
        ..*member
    };
    members.iter().zip(holders).map(held).collect()
}
