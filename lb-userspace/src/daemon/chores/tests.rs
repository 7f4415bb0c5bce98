//! Which plans need the flow table cleared before them.

use std::net::IpAddr;

use lb_common::abi::Route;
use lb_common::track::Status;

use super::*;
use crate::model::{Affinity, Capacity, OnEmpty, TableSize};
use crate::plan::{DesiredBackend, DesiredService};

fn desired(tracking: Tracking, backends: u8, table_size: TableSize) -> [DesiredService; 1] {
    let backend = |n: u8| DesiredBackend {
        address: IpAddr::from([10, 0, 0, n]),
        identity: IpAddr::from([10, 0, 0, n]),
        weight: 1,
        eligible: true,
        status: Status::Active,
        only_down: false,
        may_keep: true,
        lingers: false,
        route: Some(Route::NONE),
    };
    [DesiredService {
        key: crate::model::ServiceKey {
            vip: IpAddr::from([203, 0, 113, 1]),
            port: 80,
            protocol: crate::model::Protocol::Tcp,
        },
        flow_idle: 1_734,
        affinity: Affinity::FiveTuple,
        tracking,
        table_size,
        on_empty: OnEmpty::Keep,
        echo: lb_common::service::Echo::default(),
        backends: (1..=backends).map(backend).collect(),
    }]
}

#[test]
fn what_was_not_tracked_is_cleared_before_it_is() {
    use Tracking::{Adaptive, Always, Off};
    let nobody = HashSet::new();
    for (from, to, expected) in [
        (Off, Adaptive, true),
        (Off, Always, true),
        (Off, Off, false),
        (Adaptive, Off, false),
        (Adaptive, Adaptive, false),
        (Always, Adaptive, false),
    ] {
        let empty = Installed::new(Capacity::default());
        let first = empty.plan(&desired(from, 2, TableSize::Auto), false);
        let first = first.expect("it fits");
        assert!(!looks_again(&empty, &nobody, &first), "a new service");
        // Another backend, so that there is a plan in any case.
        let second = first.after.plan(&desired(to, 3, TableSize::Auto), false);
        let second = second.expect("it fits");
        assert!(!second.operations.is_empty());
        let found = looks_again(&first.after, &nobody, &second);
        assert_eq!(found, expected, "{from:?} to {to:?}");
    }
}

#[test]
fn what_moved_to_other_slots_is_cleared_before_it_learns() {
    let tracked = |backends, size| desired(Tracking::Adaptive, backends, TableSize::Fixed(size));
    let installed = |before: &Installed, wanted: &[DesiredService]| {
        before.plan(wanted, false).expect("it fits").after
    };
    let small = installed(&Installed::new(Capacity::default()), &tracked(2, 1_021));
    let large = installed(&small, &tracked(2, 4_093));
    let moved: HashSet<u32> = movers(&small, &large).collect();
    assert_eq!(moved.len(), 1);
    let change = large.plan(&tracked(3, 4_093), false).expect("it fits");
    assert!(looks_again(&large, &moved, &change));
    assert_eq!(movers(&large, &change.after).count(), 0);
}
