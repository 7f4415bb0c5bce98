//! A round over plain memory, with changes between its steps. That no packet suffers from it is the model's to prove
//! (`tests/tracking_model`).

use std::cell::Cell;

use lb_common::flow::{Age, FlowEntry, FlowState};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Status, TableWord};

use super::*;
use crate::tracking::change::change;
use crate::tracking::{SECOND, Tracking};

const A: u32 = 1;
const B: u32 = 2;
const SLOTS: u32 = 8;
const IDLE: u64 = 100 * SECOND;

struct Memory {
    slots: Vec<Cell<SlotWord>>,
    entries: Vec<Cell<FlowEntry>>,
    clock: Cell<u64>,
}

impl SharedMemory for Memory {
    fn slot(&self, slot: u32) -> SlotWord {
        self.slots[slot as usize].get()
    }
    fn store_slot(&self, slot: u32, word: SlotWord) {
        self.slots[slot as usize].set(word);
    }
    fn loss(&self, _: u32) -> u64 {
        0
    }
    fn entries(&self) -> u32 {
        self.entries.len() as u32
    }
    fn entry(&self, index: u32) -> FlowEntry {
        self.entries[index as usize].get()
    }
    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool {
        self.entries[index as usize].replace(new) == old
    }
    fn clock(&self) -> u64 {
        self.clock.get()
    }
}

struct Known;

impl Backends for Known {
    fn status(&self, backend: u32) -> Status {
        match backend {
            A | B => Status::Active,
            _ => Status::Gone,
        }
    }
    fn table(&self, _: u32) -> Option<TableWord> {
        Some(TableWord::new(0, SLOTS, Age::units(IDLE / SECOND)))
    }
}

/// Eight slots of one service that name A, and room for 64 flows.
fn world() -> (Memory, Book, Vec<Scope>) {
    let memory = Memory {
        slots: vec![Cell::new(SlotWord::steady(A)); SLOTS as usize],
        entries: vec![Cell::new(FlowEntry::EMPTY); 64],
        clock: Cell::new(1_000 * SECOND),
    };
    // In two halves, as if they were two services.
    let scopes = [0..SLOTS / 2, SLOTS / 2..SLOTS].map(|slots| Scope {
        slots,
        tracking: Tracking::Adaptive,
        window: IDLE,
    });
    (memory, Book::new(SLOTS), scopes.to_vec())
}

fn go_to(memory: &Memory, book: &mut Book, backend: u32) {
    let primaries = [backend; SLOTS as usize];
    change(
        memory,
        book,
        &Known,
        0,
        &primaries,
        Tracking::Adaptive,
        |_| false,
    );
}

/// Learns a flow of A in the slot with this number.
fn learn(memory: &Memory, slot: u32) {
    // The first tag of the slot.
    let tag = (u64::from(slot) << 28).div_ceil(u64::from(SLOTS)) as u32;
    let age = Age::of(memory.clock());
    let entry = FlowEntry::new(tag, A, FlowState::Learnt, age);
    let free = memory.entries.iter().find(|cell| cell.get().is_empty());
    free.expect("room").set(entry);
}

/// Takes steps of three, and the grace periods that they ask for, until `enough` says so or the end.
fn run(
    round: &mut Round,
    memory: &Memory,
    book: &mut Book,
    mut enough: impl FnMut(&Round) -> bool,
) -> Option<Swept> {
    let mut swept = None;
    for _ in 0..1_000 {
        if enough(round) {
            return swept;
        }
        let step = round.step(memory, book, &Known, 3);
        swept = round.take_swept().or(swept);
        match step {
            Step::More => {}
            Step::Grace => book.passed(book.mark()),
            Step::Done => return swept,
        }
    }
    panic!("the round does not end");
}

fn to_the_end(memory: &Memory, book: &mut Book, scopes: &[Scope]) -> Swept {
    let mut round = Round::new(scopes.to_vec());
    run(&mut round, memory, book, |_| false).expect("a sweep")
}

fn modes(memory: &Memory) -> Vec<Mode> {
    memory.slots.iter().map(|slot| slot.get().mode()).collect()
}

#[test]
fn learning_ends_in_rest() {
    let (memory, mut book, scopes) = world();
    let swept = to_the_end(&memory, &mut book, &scopes);
    assert_eq!(swept.at_rest, [true, true]);

    go_to(&memory, &mut book, B);
    learn(&memory, 5);
    let swept = to_the_end(&memory, &mut book, &scopes);
    assert_eq!(swept.at_rest, [false, false]);
    assert_eq!(swept.tally.states, [0, 1, 0, 0]);
    assert_eq!(modes(&memory), [Mode::Learn; 8], "it is not time yet");

    memory.clock.set(memory.clock() + IDLE - SECOND);
    let flow = memory.entries[0].get();
    memory.entries[0].set(flow.with(FlowState::Learnt, Age::of(memory.clock())));
    memory.clock.set(memory.clock() + 10 * SECOND);
    to_the_end(&memory, &mut book, &scopes);
    assert_eq!(modes(&memory), [Mode::Residue; 8]);
    assert_eq!(memory.entries[0].get().state(), FlowState::Established);

    let swept = to_the_end(&memory, &mut book, &scopes);
    assert_eq!(swept.at_rest, [true, false]);
    let mut expected = [Mode::Steady; 8];
    expected[5] = Mode::Residue;
    assert_eq!(modes(&memory), expected);

    memory.entries[0].set(FlowEntry::EMPTY);
    let swept = to_the_end(&memory, &mut book, &scopes);
    assert_eq!(swept.at_rest, [true, true]);
}

/// A change between the count and its use: the slot that was counted empty learns, and stops learning, meanwhile.
#[test]
fn a_slot_that_learnt_meanwhile_does_not_rest() {
    let (memory, mut book, scopes) = world();
    go_to(&memory, &mut book, B);
    go_to(&memory, &mut book, A);
    assert_eq!(modes(&memory), [Mode::Residue; 8]);
    let mut round = Round::new(scopes.clone());
    let counted = |round: &Round| matches!(round.phase, Phase::Resting(_));
    run(&mut round, &memory, &mut book, counted);

    go_to(&memory, &mut book, B);
    learn(&memory, 2);
    go_to(&memory, &mut book, A);
    let swept = run(&mut round, &memory, &mut book, |_| false).expect("a sweep");
    assert_eq!(swept.at_rest, [false, false]);
    assert_eq!(modes(&memory), [Mode::Residue; 8]);
}

#[test]
fn an_abandoned_round_leaves_nothing_settling() {
    let (memory, mut book, scopes) = world();
    go_to(&memory, &mut book, B);
    memory.clock.set(memory.clock() + 2 * IDLE);
    let settling = |memory: &Memory| memory.slots.iter().filter(|s| s.get().settling()).count();

    let mut round = Round::new(scopes.clone());
    let halfway = |round: &Round| matches!(&round.phase, Phase::Announcing(s) if s.slots() == 3);
    run(&mut round, &memory, &mut book, halfway);
    assert_eq!(settling(&memory), 3);
    round.abandon(&memory);
    assert_eq!(settling(&memory), 0);

    let mut round = Round::new(scopes.clone());
    let at_work = |round: &Round| matches!(round.phase, Phase::Settling(_));
    run(&mut round, &memory, &mut book, at_work);
    assert_eq!(settling(&memory), 8);
    // A slot that is another's by now.
    memory.slots[7].set(SlotWord::steady(9));
    round.abandon(&memory);
    assert_eq!(settling(&memory), 0);
    assert_eq!(memory.slots[7].get(), SlotWord::steady(9));
    assert_eq!(modes(&memory)[..7], [Mode::Learn; 7]);
}

#[test]
fn a_step_does_no_more_than_it_may() {
    let scopes = |sizes: &[u32]| -> Vec<Scope> {
        let mut first = 0;
        let mut scope = |size: &u32| {
            first += size;
            Scope {
                slots: first - size..first,
                tracking: Tracking::Adaptive,
                window: IDLE,
            }
        };
        sizes.iter().map(&mut scope).collect()
    };
    let taken = |sizes: &[u32], most| -> Vec<(usize, Range<u32>)> {
        let scopes = scopes(sizes);
        let mut cursor = Cursor::default();
        std::iter::from_fn(|| cursor.take(&scopes, most)).collect()
    };
    assert_eq!(taken(&[], 4), []);
    assert_eq!(taken(&[5, 0, 2], 4), [(0, 0..4), (0, 4..5), (2, 5..7)]);
    assert_eq!(taken(&[2, 3], u32::MAX), [(0, 0..2), (1, 2..5)]);
}
