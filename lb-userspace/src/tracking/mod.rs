//! Connections survive change: the daemon's half of the rules. The packets' half is [`lb_common::track`].
//!
//! ```text
//!            change: P ≠ I                    settle: all of I's flows are remembered
//!   STEADY ───────────────▶ LEARN ───────────────────────────────────────────────▶ RESIDUE
//!      ▲                      ▲            change: P = I again, or I is GONE          │ │
//!      │                      └───────────────── change: P ≠ I ──────────────────────┘ │
//!      └──────────────────────────── sweep: nothing left ──────────────────────────────┘
//! ```
//!
//! Owns: what a change does to a slot ([`change`]), what a backend may be used for and until when ([`standing`]), and the three
//! chores on the flow table: [`sweep`] and [`settle`], which the daemon does in turn ([`round`]), and the [`removal`] of a
//! backend's id. All pure: shared memory is behind
//! [`SharedMemory`], each call of which is one access, and times are nanoseconds of the packets' clock (`CLOCK_MONOTONIC_COARSE`).
//!
//! Does not own: Maglev tables, the backends' records in the kernel, and waiting. A chore that needs a grace period says so
//! ([`Step::Grace`]); its caller waits until every packet in flight has left the data path, and goes on.
//!
//! The daemon is the only writer of slots, from one thread: a chore may be interrupted by a change between two of its steps, never
//! within one.

pub mod book;
pub mod change;
pub mod removal;
pub mod round;
pub mod settle;
pub mod standing;
pub mod sweep;

use lb_common::flow::FlowEntry;
use lb_common::slot::SlotWord;
use lb_common::track::{Status, TableWord};

pub use crate::model::Tracking;
pub use book::{Book, Mark};

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// Two ticks of the flow entries' coarse age, so that no rounding makes a rest look longer than it was.
pub const MARGIN: u64 = 8 * SECOND;

/// Slots and flow table as packets and the daemon share them; each method is one access.
pub trait SharedMemory {
    /// One load.
    fn slot(&self, slot: u32) -> SlotWord;
    /// One store of eight bytes.
    fn store_slot(&self, slot: u32, word: SlotWord);
    /// When a packet last could not be remembered in this slot, nanoseconds; 0: never.
    fn loss(&self, slot: u32) -> u64;
    /// Entries of the flow table.
    fn entries(&self) -> u32;
    /// One load.
    fn entry(&self, index: u32) -> FlowEntry;
    /// Compare-and-swap.
    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool;
    /// The packets' clock, nanoseconds.
    fn clock(&self) -> u64;
}

/// What the daemon knows of backend ids.
pub trait Backends {
    /// As it was last written to the backend's record; GONE for an id that names nothing.
    fn status(&self, backend: u32) -> Status;
    /// The lookup table of the backend's service; none for an id that names nothing.
    fn table(&self, backend: u32) -> Option<TableWord>;
}

/// What a chore wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call again, at once or later.
    More,
    /// Wait until every packet that is in flight now has left the data path, then call again.
    Grace,
    /// Finished.
    Done,
}

/// The next stretch of at most `most` entries; moves `cursor`.
fn stretch(cursor: &mut u32, entries: u32, most: u32) -> std::ops::Range<u32> {
    let start = *cursor;
    *cursor = start.saturating_add(most).min(entries);
    start..*cursor
}
