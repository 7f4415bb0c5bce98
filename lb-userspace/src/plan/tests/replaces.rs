//! A backend in the place of another: only that one's slots move.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::world::{CAPACITY, World, address, backend, key, service};
use crate::model::{Capacity, ServiceKey, TableSize};
use crate::plan::{DesiredBackend, DesiredService};

fn vip() -> ServiceKey {
    key("203.0.113.1")
}

/// Backends `numbers`, each with its place: its own, or another's.
fn with(backends: &[(u8, u8)]) -> DesiredService {
    let make = |&(n, place): &(u8, u8)| DesiredBackend {
        identity: address(place),
        ..backend(vip(), n)
    };
    DesiredService {
        table_size: TableSize::Fixed(1_021),
        backends: backends.iter().map(make).collect(),
        ..service(vip(), &[])
    }
}

fn ten() -> Vec<(u8, u8)> {
    (1..=10).map(|n| (n, n)).collect()
}

/// Whose backend each slot names.
fn slots(world: &World) -> Vec<IpAddr> {
    let service = &world.installed.services[&vip()];
    let ids: BTreeMap<u32, IpAddr> = service.backends.iter().map(|(a, b)| (b.id, *a)).collect();
    let words = &world.plane.tables.slots[service.first_slot as usize..][..service.size as usize];
    words.iter().map(|word| ids[&word.primary()]).collect()
}

/// Puts `wanted` in force. How many slots moved, and how many of them in excess, as the plan says.
fn go(world: &mut World, wanted: &DesiredService) -> (u64, u64) {
    let wanted = std::slice::from_ref(wanted);
    let plan = world.installed.plan(wanted, false).unwrap();
    world.go(wanted, None).unwrap();
    (plan.moves.moved, plan.moves.excess)
}

fn world() -> World {
    World::new(Capacity {
        slots: 4 * 1_021,
        ..CAPACITY
    })
}

#[test]
fn exactly_the_slots_of_the_old_one_move() {
    let mut world = world();
    go(&mut world, &with(&ten()));
    let before = slots(&world);
    let digest = world.installed.services[&vip()].digest();
    // A chain, as in rolling deploys: 3, then 11, then 12 have the place of 3; then 3 has it back.
    for (new, old) in [(11, 3), (12, 11), (3, 12)] {
        let had = slots(&world).iter().filter(|a| **a == address(old)).count();
        assert!(had > 80, "{had}");
        let mut numbers = ten();
        numbers[2] = (new, 3);
        // The old one lingers.
        let mut wanted = with(&numbers);
        wanted.backends.push(DesiredBackend {
            eligible: false,
            lingers: true,
            may_keep: false,
            ..backend(vip(), old)
        });
        assert_eq!(go(&mut world, &wanted), (had as u64, 0), "{old} to {new}");
        for (was, is) in before.iter().zip(slots(&world)) {
            let expected = if *was == address(3) {
                address(new)
            } else {
                *was
            };
            assert_eq!(is, expected);
        }
        let service = &world.installed.services[&vip()];
        // A fleet agrees, whoever stands for whom.
        assert_eq!(service.digest(), digest);
        assert_eq!(service.slots_of(address(new)), had as u32);
        assert_eq!(service.slots_of(address(old)), 0);
        // It goes, and nothing moves.
        wanted.backends.pop();
        assert_eq!(go(&mut world, &wanted), (0, 0));
    }
    assert_eq!(slots(&world), before);
}

#[test]
fn without_a_place_others_move_too() {
    let mut world = world();
    go(&mut world, &with(&ten()));
    let had = slots(&world).iter().filter(|a| **a == address(3)).count();
    let mut numbers = ten();
    numbers[2] = (11, 11);
    let (moved, excess) = go(&mut world, &with(&numbers));
    assert!(moved > had as u64 && excess > 0, "{moved}, {excess}");
}

#[test]
fn a_heavier_heir_takes_what_its_weight_says() {
    let mut heir = world();
    go(&mut heir, &with(&ten()));
    let mut numbers = ten();
    numbers[2] = (11, 3);
    let mut wanted = with(&numbers);
    wanted.backends[2].weight = 3;
    go(&mut heir, &wanted);
    // The same as the old one with this weight.
    let mut same = world();
    let mut heavier = with(&ten());
    heavier.backends[2].weight = 3;
    go(&mut same, &heavier);
    let stands_for = |a: IpAddr| if a == address(11) { address(3) } else { a };
    let held: Vec<_> = slots(&heir).into_iter().map(stands_for).collect();
    assert_eq!(held, slots(&same));
    assert_eq!(
        heir.installed.services[&vip()].digest(),
        same.installed.services[&vip()].digest()
    );
}

#[test]
fn the_last_table_goes_to_heirs() {
    let mut world = world();
    go(&mut world, &with(&[(1, 1), (2, 2)]));
    let before = slots(&world);
    // Nobody can be reached any more, and 3 stands for 2.
    let mut wanted = with(&[(1, 1), (3, 2)]);
    for backend in &mut wanted.backends {
        backend.eligible = false;
    }
    go(&mut world, &wanted);
    for (was, is) in before.iter().zip(slots(&world)) {
        let expected = if *was == address(2) { address(3) } else { *was };
        assert_eq!(is, expected);
    }
}
