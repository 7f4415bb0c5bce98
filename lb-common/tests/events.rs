//! What tracking cannot do for a packet is counted, once each, and the packet goes on.

use lb_common::event::Event;
use lb_common::native::MemoryTables;
use lb_common::reason::Reason;
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Head, Kind, Place, Status, TableWord, choose};

/// Backend 2 takes over from backend 1; the flow table is a single bucket.
fn tables() -> MemoryTables {
    let mut tables = MemoryTables::new("test", 16, 7, 3);
    tables.node.flow_mask = 0;
    for (id, status) in [(1, Status::Draining), (2, Status::Active)] {
        tables.backends[id].head = Head::new(1, status, 0).0;
        tables.backends[id].table = TableWord::new(0, 7, 70).0;
    }
    tables
}

fn send(tables: &MemoryTables, flow: u64, kind: Kind, settling: bool) -> Result<u32, Reason> {
    let place = Place {
        hash: flow << 40,
        service: 1,
        flow_idle: 70,
        slot: 0,
        word: SlotWord::new(Mode::Learn, 2, 1, settling),
    };
    choose(tables, &place, kind)
}

fn counted(tables: &MemoryTables) -> [u64; 2] {
    [Event::PinFailed, Event::LearningLost].map(|event| tables.events[event as usize].get())
}

#[test]
fn openers_without_a_pin_are_counted() {
    let tables = tables();
    for flow in 1..=8 {
        assert_eq!(send(&tables, flow, Kind::Open, false), Ok(2));
    }
    assert_eq!(counted(&tables), [0, 0]);
    assert_eq!(send(&tables, 9, Kind::Open, false), Ok(1));
    assert_eq!(counted(&tables), [1, 0]);
    assert_eq!(send(&tables, 9, Kind::Open, true), Err(Reason::Settling));
    assert_eq!(counted(&tables), [2, 0]);
}

#[test]
fn what_is_not_learnt_or_given_up_is_counted() {
    let tables = tables();
    for flow in 1..=8 {
        assert_eq!(send(&tables, flow, Kind::Other, false), Ok(1));
    }
    assert_eq!(counted(&tables), [0, 0]);
    assert_eq!(send(&tables, 9, Kind::Other, false), Ok(1));
    assert_eq!(counted(&tables), [0, 1], "one was given up for the ninth");
    // What is remembered, or leaves no trace, loses nothing.
    assert_eq!(send(&tables, 9, Kind::Other, false), Ok(1));
    assert_eq!(send(&tables, 10, Kind::Icmp, false), Ok(1));
    assert_eq!(counted(&tables), [0, 1]);

    let tables = self::tables();
    for flow in 1..=8 {
        assert_eq!(send(&tables, flow, Kind::Open, false), Ok(2));
    }
    assert_eq!(send(&tables, 9, Kind::Other, false), Ok(1));
    assert_eq!(counted(&tables), [0, 1], "no room to learn it");
}
