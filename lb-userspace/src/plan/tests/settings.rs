//! Settings of tracking that change while flows are remembered: for how long, and which.

use lb_common::address::Address;
use lb_common::service::{Echo, ServiceTuple, VipNote};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::TableWord;

use super::world::{CAPACITY, FLOW_IDLE, World, key, service};
use crate::dataplane::Operation;
use crate::model::{ServiceKey, TableSize};
use crate::plan::{DesiredService, idle_units, window};
use crate::tracking::Tracking;

fn vip() -> ServiceKey {
    key("203.0.113.1")
}

fn with(tracking: Tracking, flow_idle: u16) -> DesiredService {
    DesiredService {
        tracking,
        flow_idle,
        ..service(vip(), &[1, 2, 3])
    }
}

/// Slots of the service by mode; P and I are the same everywhere.
fn modes(world: &World) -> [usize; 3] {
    let service = &world.installed.services[&vip()];
    let mut modes = [0; 3];
    for slot in service.first_slot..service.first_slot + service.size {
        let word = world.plane.tables.slots[slot as usize];
        assert_eq!(word.primary(), word.incumbent());
        modes[word.mode() as usize] += 1;
    }
    modes
}

#[test]
fn a_time_of_silence_is_never_cut_short() {
    for seconds in [8, 9, 60, 300, 7_440, 16_200] {
        let time = std::time::Duration::from_secs(seconds);
        let units = idle_units(time);
        let nanoseconds = seconds * 1_000_000_000;
        assert!(window(units) >= nanoseconds, "{seconds} s");
        assert!(window(units) < nanoseconds + (1 << 32), "{seconds} s");
        // Saturated, it would say less than it was made from.
        assert!(units < 4_079, "{seconds} s");
    }
    let more = std::time::Duration::from_millis(8_001);
    assert_eq!(
        idle_units(more),
        idle_units(std::time::Duration::from_secs(9))
    );
    assert_eq!(FLOW_IDLE, idle_units(std::time::Duration::from_secs(7_440)));
}

#[test]
fn always_learns_from_the_first_table_on() {
    let mut world = World::new(CAPACITY);
    world.plane.tables.clock.set(77 << 32);
    world
        .go(&[with(Tracking::Always, FLOW_IDLE)], None)
        .unwrap();
    assert_eq!(modes(&world), [0, 31, 0]);
    let first = world.installed.services[&vip()].first_slot;
    // Or a change would take all flows for learnt, and settle at once.
    assert_eq!(world.plane.learns_since(first), 77 << 32);
    // A larger table begins anew.
    world.plane.tables.clock.set(99 << 32);
    let larger = DesiredService {
        table_size: TableSize::Fixed(61),
        ..with(Tracking::Always, FLOW_IDLE)
    };
    world.go(&[larger], None).unwrap();
    assert_eq!(modes(&world), [0, 61, 0]);
    let first = world.installed.services[&vip()].first_slot;
    assert_eq!(world.plane.learns_since(first), 99 << 32);
}

#[test]
fn tracking_changes_in_place() {
    let mut world = World::new(CAPACITY);
    for (tracking, expected) in [
        (Tracking::Adaptive, [31, 0, 0]),
        (Tracking::Always, [0, 31, 0]),
        // What was remembered is followed until the sweep finds nothing of it left.
        (Tracking::Adaptive, [0, 0, 31]),
        (Tracking::Always, [0, 31, 0]),
        (Tracking::Off, [31, 0, 0]),
        (Tracking::Always, [0, 31, 0]),
    ] {
        world.go(&[with(tracking, FLOW_IDLE)], None).unwrap();
        assert_eq!(modes(&world), expected, "{tracking:?}");
    }
}

#[test]
fn always_without_a_backend_remembers_nothing() {
    let mut world = World::new(CAPACITY);
    let mut nobody = with(Tracking::Always, FLOW_IDLE);
    nobody.backends.clear();
    world.go(&[nobody], None).unwrap();
    assert_eq!(modes(&world), [31, 0, 0]);
    world
        .go(&[with(Tracking::Always, FLOW_IDLE)], None)
        .unwrap();
    assert_eq!(modes(&world), [0, 31, 0]);
}

#[test]
fn another_time_of_silence_reaches_packets_and_sweeper_and_moves_nobody() {
    let mut world = World::new(CAPACITY);
    world
        .go(&[with(Tracking::Adaptive, FLOW_IDLE)], None)
        .unwrap();
    let slots: Vec<SlotWord> = world.plane.tables.slots.clone();
    for (flow_idle, grows) in [(70, false), (1_000, true)] {
        let wanted = [with(Tracking::Adaptive, flow_idle)];
        let plan = world.installed.plan(&wanted, false).unwrap();
        assert_eq!((plan.moves.moved, plan.tables_changed), (0, 0));
        let changes = |o: &Operation| matches!(o, Operation::ChangeSlots { .. });
        assert_eq!(plan.operations.iter().any(changes), grows);
        world.go(&wanted, None).unwrap();
        assert_eq!(world.plane.tables.slots, slots);
        let installed = &world.installed.services[&vip()];
        assert_eq!(installed.flow_idle, flow_idle);
        for backend in installed.backends.values() {
            let record = &world.plane.tables.backends[backend.id as usize];
            assert_eq!(TableWord(record.table).flow_idle(), flow_idle);
        }
        let [.., entry] = &world.installed.entries()[..1] else {
            panic!("no entry")
        };
        assert_eq!(TableWord(entry.table).flow_idle(), flow_idle);
    }
}

/// What was silent for the shorter time may have been forgotten since its slot began to learn.
#[test]
fn a_slot_that_learns_begins_anew_when_flows_may_be_silent_for_longer() {
    let mut world = World::new(CAPACITY);
    let at = |world: &World, units: u64| world.plane.tables.clock.set(units << 32);
    let learning = |world: &World| {
        let words = world.plane.tables.slots.iter().enumerate();
        words
            .filter(|(_, word)| word.mode() == Mode::Learn)
            .map(|(slot, _)| slot as u32)
            .collect::<Vec<_>>()
    };
    world.go(&[with(Tracking::Adaptive, 70)], None).unwrap();
    at(&world, 10);
    let heavier = |flow_idle| {
        let mut service = with(Tracking::Adaptive, flow_idle);
        service.backends[0].weight = 5;
        service
    };
    world.go(&[heavier(70)], None).unwrap();
    let slots = learning(&world);
    assert!(!slots.is_empty());
    for (now, flow_idle, since) in [(20, 60, 10), (30, 90, 30), (40, 80, 30)] {
        at(&world, now);
        world.go(&[heavier(flow_idle)], None).unwrap();
        assert_eq!(learning(&world), slots);
        for slot in &slots {
            assert_eq!(world.plane.learns_since(*slot), since << 32, "at {now}");
        }
    }
}

#[test]
fn a_shorter_time_that_may_have_been_in_force_counts() {
    let mut world = World::new(CAPACITY);
    world
        .go(&[with(Tracking::Adaptive, FLOW_IDLE)], None)
        .unwrap();
    // Stopped after the backends' records were written.
    world.go(&[with(Tracking::Adaptive, 70)], Some(3)).unwrap();
    let plan = world
        .installed
        .plan(&[with(Tracking::Adaptive, FLOW_IDLE)], true)
        .unwrap();
    let anew = plan
        .operations
        .iter()
        .any(|o| matches!(o, Operation::ChangeSlots { came_back, .. } if came_back.len() == 3));
    assert!(anew, "{:?}", plan.operations);
}

#[test]
fn what_happens_to_pings_changes_in_the_vips_note_alone() {
    let mut world = World::new(CAPACITY);
    let wanted = |echo| DesiredService {
        echo,
        ..with(Tracking::Adaptive, FLOW_IDLE)
    };
    world.go(&[wanted(Echo::Reply)], None).unwrap();
    for echo in [Echo::Drop, Echo::Pass, Echo::Reply] {
        let plan = world.installed.plan(&[wanted(echo)], false).unwrap();
        let [Operation::SetServices { entries }] = &plan.operations[..] else {
            panic!("{:?}", plan.operations);
        };
        let tuple = ServiceTuple::vip(Address::from(vip().vip));
        let note = entries.iter().find(|entry| entry.tuple() == Some(tuple));
        let note = VipNote(note.expect("a note of the VIP").table);
        assert_eq!(note.echo(), echo);
        assert!(note.serves(vip().protocol.number()));
        world.go(&[wanted(echo)], None).unwrap();
    }
    let plan = world.installed.plan(&[wanted(Echo::Reply)], false).unwrap();
    assert!(plan.operations.is_empty());
}
