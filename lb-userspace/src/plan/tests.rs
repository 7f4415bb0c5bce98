//! The planner against the real data path, in memory. `world` says what packets may meet, `histories` makes it meet everything;
//! here is each rule on its own.

mod histories;
mod on_empty;
mod replaces;
mod settings;
mod world;

use lb_common::reason::Reason;

use self::world::{CAPACITY, World, address, backend, key, service};
use super::{Installed, PlanError};
use crate::dataplane::Operation;
use crate::model::{Capacity, TableSize};

const A: &str = "203.0.113.1";
const B: &str = "203.0.113.2";

#[test]
fn a_service_comes_and_goes() {
    let mut world = World::new(CAPACITY);
    assert_eq!(world.send(key(A)), Err(Reason::NotOurs));
    world.go(&[service(key(A), &[1])], None).unwrap();
    assert_eq!(world.send(key(A)), Ok(1));
    assert_eq!(world.send(key(B)), Err(Reason::NotOurs));
    world.go(&[], None).unwrap();
    assert_eq!(world.send(key(A)), Err(Reason::NotOurs));
    assert_eq!(world.installed.backends_used(), 0);
    assert_eq!(world.installed.slots_used(), 0);
}

#[test]
fn a_weight_changes_shares_in_place() {
    let mut world = World::new(CAPACITY);
    let mut desired = service(key(A), &[1, 2]);
    world.go(&[desired.clone()], None).unwrap();
    desired.backends[0].weight = 4;
    let plan = world.installed.plan(&[desired.clone()], false).unwrap();
    assert!(
        matches!(
            plan.operations[..],
            [Operation::Describe { .. }, Operation::ChangeSlots { .. }]
        ),
        "{:?}",
        plan.operations
    );
    assert!(plan.moves.moved > 0);
    assert_eq!((plan.moves.excess, plan.tables_changed), (0, 1));
    world.go(&[desired], None).unwrap();
    let shares = world.shares(key(A));
    assert!(shares[&1] >= 3 * shares[&2], "{shares:?}");
}

#[test]
fn a_new_route_is_one_write() {
    let mut world = World::new(CAPACITY);
    let mut desired = service(key(A), &[1, 2]);
    world.go(&[desired.clone()], None).unwrap();
    desired.backends[1].route = Some(world::route(key(A), address(2), 2));
    let plan = world.installed.plan(&[desired.clone()], false).unwrap();
    assert!(
        matches!(plan.operations[..], [Operation::WriteBackend { .. }]),
        "{:?}",
        plan.operations
    );
    world.go(&[desired.clone()], None).unwrap();
    // Not known for a while: what is installed stays.
    desired.backends[1].route = None;
    let plan = world.installed.plan(&[desired], false).unwrap();
    assert_eq!(plan.operations, []);
}

#[test]
fn a_full_plan_is_no_news_for_the_next_one() {
    let mut world = World::new(CAPACITY);
    let desired = [service(key(A), &[1]), service(key(B), &[2])];
    world.go(&desired, None).unwrap();
    let full = world.installed.plan(&desired, true).unwrap();
    let changed = full.operations.iter().map(|operation| match operation {
        Operation::ChangeSlots { primaries, .. } => primaries.len(),
        _ => 0,
    });
    assert_eq!(changed.sum::<usize>(), 62);
    assert_eq!(full.after.plan(&desired, false).unwrap().operations, []);

    // Also when it is the first to use an interface.
    let first = Installed::new(CAPACITY).plan(&desired, true).unwrap();
    assert!(matches!(first.operations[0], Operation::AllowEgress { .. }));
    assert_eq!(first.after.plan(&desired, false).unwrap().operations, []);
}

#[test]
fn a_full_plan_mends_garbage() {
    use lb_common::slot::SlotWord;
    let mut world = World::new(CAPACITY);
    let desired = [service(key(A), &[1, 2]), service(key(B), &[3])];
    world.go(&desired, None).unwrap();
    for (i, slot) in world.plane.tables.slots.iter_mut().enumerate() {
        *slot = SlotWord::steady(i as u32 % 40);
    }
    world.plane.tables.backends[2] = Default::default();
    // An interruption before the first operation: the mirror is doubted, nothing else is known.
    world.go(&[service(key(A), &[1, 2])], Some(0)).unwrap();
    let plan = world.installed.plan(&desired, true).unwrap();
    for operation in &plan.operations {
        use crate::dataplane::DataPlane as _;
        world.plane.apply(operation).unwrap();
    }
    world.go(&desired, None).unwrap();
    assert_eq!(world.shares(key(A)).values().sum::<usize>(), 31);
    assert_eq!(world.shares(key(B)), [(3, 31)].into());
}

/// The next plan wants something else than the one that broke off: nothing of the old one's may lead to the new one's backends.
#[test]
fn what_an_interrupted_plan_took_is_given_to_nobody_else() {
    let mut steps = 0;
    for stop in 0..20 {
        let mut world = World::new(CAPACITY);
        world.go(&[service(key(A), &[1])], None).unwrap();
        let wider = service(key(A), &[1, 2]);
        let new = service(key(B), &[3]);
        let length = world
            .installed
            .plan(&[wider.clone(), new.clone()], false)
            .unwrap()
            .operations
            .len();
        if stop >= length {
            break;
        }
        steps += 1;
        world.go(&[wider, new], Some(stop)).unwrap();
        // Packets are checked after every operation, see `World::go`.
        let mut other = key(B);
        other.port = 443;
        world
            .go(&[service(key(A), &[1, 4]), service(other, &[5])], None)
            .unwrap();
        assert_eq!(world.send(key(B)), Err(Reason::NotOurs));
        assert_eq!(world.send(other), Ok(5));
    }
    assert!(steps >= 4, "only {steps} places to break off");
}

/// A service was perhaps moved to a new range, perhaps not; that range goes to nobody else before a grace period.
#[test]
fn a_range_that_may_be_in_force_is_given_to_nobody_else() {
    let sized = |vip, size| {
        let mut service = service(key(vip), &[1, 2]);
        service.table_size = TableSize::Fixed(size);
        service
    };
    for stop in 0..5 {
        for wanted in [31, 13, 7] {
            let mut world = World::new(CAPACITY);
            world.go(&[sized(A, 31)], None).unwrap();
            world.go(&[sized(A, 13)], Some(stop)).unwrap();
            world.go(&[sized(A, wanted), sized(B, 13)], None).unwrap();
            world.go(&[sized(A, wanted), sized(B, 7)], None).unwrap();
        }
    }
}

#[test]
fn interrupting_the_same_plan_again_and_again_uses_nothing_up() {
    let mut world = World::new(CAPACITY);
    world.go(&[service(key(A), &[1])], None).unwrap();
    let mut resized = service(key(A), &[1, 2, 3]);
    resized.table_size = TableSize::Fixed(13);
    let desired = [resized, service(key(B), &[4])];
    world.go(&desired, Some(3)).unwrap();
    let used = world.installed.backends_used();
    for stop in (0..100).map(|i| i % 5) {
        world.go(&desired, Some(stop)).unwrap();
        assert_eq!(world.installed.backends_used(), used);
        assert!(world.installed.stray.len() <= 1);
    }
    world.go(&desired, None).unwrap();
    assert_eq!(world.installed.stray.len(), 0);
    assert_eq!(world.installed.slots_used(), 13 + 31);
}

/// A size that is set and taken back while nothing can be applied.
#[test]
fn stray_ranges_come_back() {
    let mut world = World::new(CAPACITY);
    let sized = |size| {
        let mut service = service(key(A), &[1, 2]);
        service.table_size = TableSize::Fixed(size);
        [service]
    };
    world.go(&sized(31), None).unwrap();
    for i in 0..60 {
        world.go(&sized([13, 31, 7][i % 3]), Some(i % 3)).unwrap();
        assert!(world.installed.stray.len() <= 2);
    }
    world.go(&sized(13), None).unwrap();
    world.go(&[], None).unwrap();
    world.go(&sized(31), None).unwrap();
    assert_eq!(world.installed.services[&key(A)].first_slot, 0);
}

#[test]
fn freed_ids_come_round_last_and_freed_ranges_first() {
    let mut world = World::new(CAPACITY);
    world.go(&[service(key(A), &[1, 2])], None).unwrap();
    let old = world.installed.services[&key(A)].clone();
    world.go(&[service(key(B), &[1, 2])], None).unwrap();
    let new = world.installed.services[&key(B)].clone();
    // Both were there at once for a moment.
    assert_eq!((old.first_slot, new.first_slot), (0, 31));
    assert!(new.number > old.number);
    world.go(&[service(key(A), &[1, 2])], None).unwrap();
    let again = world.installed.services[&key(A)].clone();
    assert_eq!(again.first_slot, 0);
    let ids: Vec<_> = again.backends.values().map(|b| b.id).collect();
    assert_eq!(ids, [5, 6]);
    assert!(again.number > new.number);
}

#[test]
fn an_automatic_size_stays_for_the_life_of_the_service() {
    let capacity = Capacity {
        slots: 20_000,
        ..CAPACITY
    };
    let mut world = World::new(capacity);
    let auto = |backends: &[u8]| {
        let mut service = service(key(A), backends);
        service.table_size = TableSize::Auto;
        [service]
    };
    world.go(&auto(&[1, 2]), None).unwrap();
    assert_eq!(world.installed.services[&key(A)].size, 1_021);
    let twenty: Vec<u8> = (1..=20).collect();
    world.go(&auto(&twenty), None).unwrap();
    assert_eq!(world.installed.services[&key(A)].size, 1_021);
    // Set by hand: a new range.
    let mut fixed = auto(&twenty);
    fixed[0].table_size = TableSize::Fixed(4_093);
    world.go(&fixed, None).unwrap();
    let service = world.installed.services[&key(A)].clone();
    assert_eq!((service.first_slot, service.size), (1_021, 4_093));
}

#[test]
fn what_does_not_fit_is_named_by_its_key() {
    let refused = |capacity: Capacity, desired: &[super::DesiredService]| {
        let installed = Installed::new(capacity);
        let error = installed.plan(desired, false).expect_err("does not fit");
        assert_eq!(installed.backends_used() + installed.slots_used(), 0);
        let PlanError::Capacity { key, limit, .. } = &error;
        let text = error.to_string();
        assert!(
            text.contains(&format!("capacity.{key} = {limit}")),
            "{text}"
        );
        (*key, text)
    };
    let two = [service(key(A), &[1, 2]), service(key(B), &[3])];
    let small = |services, backends, slots| Capacity {
        services,
        backends,
        slots,
        flows: 0,
    };
    assert_eq!(refused(small(1, 9, 99), &two).0, "services");
    let (key, text) = refused(small(2, 2, 99), &two);
    assert_eq!(key, "backends");
    assert!(text.contains("203.0.113.2:80/tcp"), "{text}");
    assert_eq!(refused(small(2, 3, 61), &two).0, "slots");
    assert!(Installed::new(small(2, 3, 62)).plan(&two, false).is_ok());
}

/// A plan that does not fit changes nothing; the next one that does goes on from what is there.
#[test]
fn a_refused_plan_leaves_no_trace() {
    let capacity = Capacity {
        backends: 3,
        ..CAPACITY
    };
    let mut world = World::new(capacity);
    world.go(&[service(key(A), &[1, 2])], None).unwrap();
    let too_many = [service(key(A), &[1, 2]), service(key(B), &[3, 4])];
    world.go(&too_many, None).expect_err("four of three");
    world
        .go(&[service(key(A), &[1, 2]), service(key(B), &[3])], None)
        .unwrap();
    assert_eq!(world.installed.backends_used(), 3);
    assert_eq!(world.send(key(B)), Ok(3));
}

/// Ids of backends that linger are still taken: who comes meanwhile waits, and the others are served.
#[test]
fn a_newcomer_waits_for_an_id_that_lingers() {
    let capacity = Capacity {
        backends: 3,
        ..CAPACITY
    };
    let mut world = World::new(capacity);
    world.go(&[service(key(A), &[1, 2])], None).unwrap();
    let mut desired = [service(key(A), &[1, 2]), service(key(B), &[3, 4])];
    let leaving = &mut desired[0].backends[1];
    (leaving.eligible, leaving.lingers, leaving.weight) = (false, true, 0);
    let plan = world.installed.plan(&desired, false).unwrap();
    assert!(plan.postponed);
    let b = |installed: &Installed| -> Vec<_> {
        installed.services[&key(B)]
            .members
            .iter()
            .map(|m| m.identity)
            .collect()
    };
    assert_eq!(b(&plan.after), [address(3)]);
    // It leaves: its id is free after this plan, and the newcomer gets it in the next one.
    desired[0].backends.truncate(1);
    let plan = plan.after.plan(&desired, false).unwrap();
    assert!(plan.postponed);
    let plan = plan.after.plan(&desired, false).unwrap();
    assert!(!plan.postponed);
    assert_eq!(b(&plan.after), [address(3), address(4)]);
    // One that was never installed does not come only to linger.
    let mut last = service(key(B), &[3, 4]);
    last.backends[1].lingers = true;
    last.backends[1].eligible = false;
    let plan = Installed::new(capacity).plan(&[last], false).unwrap();
    assert_eq!(plan.after.backends_used(), 1);
}

#[test]
fn moves_are_counted_for_tables_that_change_only() {
    let mut world = World::new(CAPACITY);
    world
        .go(&[service(key(A), &[1, 2]), service(key(B), &[3])], None)
        .unwrap();
    let mut desired = [service(key(A), &[1, 2]), service(key(B), &[3])];
    desired[0].backends[0].eligible = false;
    let plan = world.installed.plan(&desired, false).unwrap();
    let lost = world.shares(key(A))[&1] as u64;
    assert_eq!((plan.moves.moved, plan.tables_changed), (lost, 1));
    // A service that is new moves nobody's flows.
    let mut other = key(B);
    other.port = 443;
    let more = [
        service(key(A), &[1, 2]),
        service(key(B), &[3]),
        service(other, &[4]),
    ];
    let plan = world.installed.plan(&more, false).unwrap();
    assert_eq!((plan.moves.moved, plan.tables_changed), (0, 1));
    assert_eq!(backend(other, 4).weight, 1);
}
