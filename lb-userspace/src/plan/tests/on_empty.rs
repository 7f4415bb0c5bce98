//! What a service does when nobody is eligible: the rules of `on_empty`.

use lb_common::reason::Reason;

use super::world::{CAPACITY, World, key, service};
use crate::model::{OnEmpty, ServiceKey};
use crate::plan::DesiredService;

fn vip() -> ServiceKey {
    key("203.0.113.1")
}

fn three(on_empty: OnEmpty) -> DesiredService {
    DesiredService {
        on_empty,
        ..service(vip(), &[1, 2, 3])
    }
}

/// Probes of these fail, of the others they succeed.
fn down(mut service: DesiredService, failing: &[usize]) -> DesiredService {
    for (i, backend) in service.backends.iter_mut().enumerate() {
        backend.eligible = !failing.contains(&i);
    }
    service
}

const ALL: &[usize] = &[0, 1, 2];

#[test]
fn keep_the_last_table_stays_when_all_fail() {
    let mut world = World::new(CAPACITY);
    let service = three(OnEmpty::Keep);
    // One had left before the others failed: it is not in the last table.
    world.go(&[down(service.clone(), &[2])], None).unwrap();
    let last = world.shares(vip());
    assert_eq!(last.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let plan = world
        .installed
        .plan(&[down(service.clone(), ALL)], false)
        .unwrap();
    assert_eq!(plan.operations, [], "it stays as it is");
    world.go(&[down(service, ALL)], None).unwrap();
    assert_eq!(world.shares(vip()), last);
}

#[test]
fn keep_when_the_last_fails_everybody_shares_again() {
    let mut world = World::new(CAPACITY);
    let service = three(OnEmpty::Keep);
    world.go(std::slice::from_ref(&service), None).unwrap();
    let whole = world.shares(vip());
    // A prober that fails takes them one by one.
    for failing in [&[0][..], &[0, 1], ALL] {
        let mut failed = down(service.clone(), failing);
        for i in failing {
            failed.backends[*i].only_down = true;
        }
        world.go(&[failed], None).unwrap();
        assert!(world.send(vip()).is_ok());
    }
    assert_eq!(world.shares(vip()), whole);
}

#[test]
fn keep_a_start_while_all_probes_fail_forwards() {
    let mut world = World::new(CAPACITY);
    let mut service = down(three(OnEmpty::Keep), ALL);
    for backend in &mut service.backends {
        backend.only_down = true;
    }
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert_eq!(world.shares(vip()).len(), 3);
    service.on_empty = OnEmpty::Drop;
    world.go(&[service], None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
}

#[test]
fn keep_but_who_is_disabled_or_removed_leaves_the_last_table() {
    let mut world = World::new(CAPACITY);
    let service = three(OnEmpty::Keep);
    world.go(std::slice::from_ref(&service), None).unwrap();
    let mut service = down(service, ALL);
    service.backends[0].may_keep = false;
    world.go(std::slice::from_ref(&service), None).unwrap();
    let shares = world.shares(vip());
    assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(shares.values().sum::<usize>(), 31);
    service.backends.remove(1);
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert_eq!(world.shares(vip()), [(3, 31)].into());
    // Activated again without being healthy, it does not come back.
    service.backends[0].may_keep = true;
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert_eq!(world.shares(vip()), [(3, 31)].into());
}

#[test]
fn deleting_the_last_backend_empties_the_table_at_once() {
    let mut world = World::new(CAPACITY);
    let mut service = three(OnEmpty::Keep);
    world.go(&[down(service.clone(), ALL)], None).unwrap();
    world.go(std::slice::from_ref(&service), None).unwrap();
    world.go(&[down(service.clone(), ALL)], None).unwrap();
    assert!(world.send(vip()).is_ok());
    service.backends.clear();
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
    assert_eq!(world.installed.services[&vip()].digest(), None);
    // One that comes new, and down, is not the last table's.
    let mut fresh = super::service(vip(), &[1]);
    fresh.backends[0].eligible = false;
    world.go(&[fresh], None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
}

#[test]
fn drop_empties_the_table_when_all_fail() {
    let mut world = World::new(CAPACITY);
    let service = three(OnEmpty::Drop);
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert!(world.send(vip()).is_ok());
    world.go(&[down(service, ALL)], None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
}

#[test]
fn a_service_that_never_had_an_eligible_backend_drops() {
    for on_empty in [OnEmpty::Keep, OnEmpty::Drop] {
        let mut world = World::new(CAPACITY);
        world.go(&[down(three(on_empty), ALL)], None).unwrap();
        assert_eq!(world.send(vip()), Err(Reason::NoBackend), "{on_empty}");
    }
}

#[test]
fn the_table_is_rebuilt_when_backends_come_back() {
    for on_empty in [OnEmpty::Keep, OnEmpty::Drop] {
        let mut world = World::new(CAPACITY);
        let service = three(on_empty);
        world.go(std::slice::from_ref(&service), None).unwrap();
        let whole = world.shares(vip());
        world.go(&[down(service.clone(), ALL)], None).unwrap();
        world.go(&[down(service.clone(), &[0, 2])], None).unwrap();
        assert_eq!(world.shares(vip()), [(2, 31)].into());
        world.go(&[service], None).unwrap();
        assert_eq!(world.shares(vip()), whole);
    }
}

#[test]
fn from_keep_to_drop_while_all_are_down() {
    let mut world = World::new(CAPACITY);
    let mut service = three(OnEmpty::Keep);
    world.go(std::slice::from_ref(&service), None).unwrap();
    service = down(service, ALL);
    world.go(std::slice::from_ref(&service), None).unwrap();
    service.on_empty = OnEmpty::Drop;
    world.go(std::slice::from_ref(&service), None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
    // The last table is gone; there is nothing to keep.
    service.on_empty = OnEmpty::Keep;
    world.go(&[service], None).unwrap();
    assert_eq!(world.send(vip()), Err(Reason::NoBackend));
}
