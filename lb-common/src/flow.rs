//! The flow table: what is remembered of connections that a change could break.
//!
//! Eight entries of one word each make a bucket of one cache line. Every write is a compare-and-swap, so an entry is always whole.
//!
//! ```text
//!  63   62       61 … 60   59 … 48   47 … 20   19 … 0
//! ┌────┬────────┬─────────┬─────────┬─────────┬────────────┐
//! │ 0  │ synced │ state   │ age     │ tag     │ backend id │
//! └────┴────────┴─────────┴─────────┴─────────┴────────────┘
//! ```
//! An empty entry is 0 (no backend has id 0). The tag is the hash's top 28 bits, from which the slot follows; the bucket comes from
//! bits outside the tag.

use crate::slot::BACKEND_ID_BITS;

/// Entries of a bucket.
pub const WAYS: usize = 8;

const TAG_BITS: u32 = 28;
const TAG_SHIFT: u32 = BACKEND_ID_BITS;
const AGE_SHIFT: u32 = TAG_SHIFT + TAG_BITS;
const AGE_BITS: u32 = 12;
const STATE_SHIFT: u32 = AGE_SHIFT + AGE_BITS;
const ID_MASK: u64 = (1 << BACKEND_ID_BITS) - 1;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const AGE_MASK: u64 = (1 << AGE_BITS) - 1;

/// A moment in units of 2³² ns (about 4.3 s), modulo 4,096 (about 4.9 h), from the kernel's coarse monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age(pub u16);

impl Age {
    #[inline(always)]
    pub const fn of(nanoseconds: u64) -> Self {
        Self(((nanoseconds >> 32) & AGE_MASK) as u16)
    }

    /// Units since `earlier`. CPUs may differ by a tick: what looks like almost a whole turn is nothing.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u16 {
        let units = self.0.wrapping_sub(earlier.0) & AGE_MASK as u16;
        if units >= 4_080 { 0 } else { units }
    }

    /// The least number of units that are surely `seconds`: a difference of n units means more than n − 1.
    pub const fn units(seconds: u64) -> u16 {
        let units = (seconds * 1_000_000_000).div_ceil(1 << 32) + 1;
        if units > 4_079 { 4_079 } else { units as u16 }
    }
}

/// A closed connection's entry may be taken for another flow, or opened again, after this.
pub const CLOSED_REST: u16 = Age::units(8);
/// An unanswered opener's entry may be taken for another flow after this.
pub const SYN_REST: u16 = Age::units(16);
/// An opener on an entry that was silent for this long is a new connection.
pub const REOPEN: u16 = Age::units(60);
/// Time-outs of the states SYN and CLO; LRN and EST have the service's `flow_idle`.
pub const SYN_TIMEOUT: u16 = Age::units(64);
pub const CLOSED_TIMEOUT: u16 = Age::units(240);

/// What is known of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Pinned by its opener; nothing else seen yet.
    Syn = 0,
    /// Learnt from a packet in the middle: its backend is the slot's incumbent.
    Learnt = 1,
    Established = 2,
    /// FIN or RST seen.
    Closed = 3,
}

impl FlowState {
    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Syn,
            1 => Self::Learnt,
            2 => Self::Established,
            _ => Self::Closed,
        }
    }
}

/// One entry of the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowEntry(pub u64);

impl FlowEntry {
    pub const EMPTY: Self = Self(0);

    #[inline(always)]
    pub const fn new(tag: u32, backend: u32, state: FlowState, age: Age) -> Self {
        Self(
            (backend as u64 & ID_MASK)
                | ((tag as u64 & TAG_MASK) << TAG_SHIFT)
                | ((age.0 as u64 & AGE_MASK) << AGE_SHIFT)
                | ((state as u64) << STATE_SHIFT),
        )
    }

    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 & ID_MASK) as u32
    }

    #[inline(always)]
    pub const fn tag(self) -> u32 {
        ((self.0 >> TAG_SHIFT) & TAG_MASK) as u32
    }

    #[inline(always)]
    pub const fn age(self) -> Age {
        Age(((self.0 >> AGE_SHIFT) & AGE_MASK) as u16)
    }

    #[inline(always)]
    pub const fn state(self) -> FlowState {
        FlowState::from_bits(self.0 >> STATE_SHIFT)
    }

    /// The same flow in another state, seen now.
    #[inline(always)]
    pub const fn with(self, state: FlowState, age: Age) -> Self {
        const KEPT: u64 = ID_MASK | (TAG_MASK << TAG_SHIFT);
        Self(
            (self.0 & KEPT)
                | ((age.0 as u64 & AGE_MASK) << AGE_SHIFT)
                | ((state as u64) << STATE_SHIFT),
        )
    }

    /// Whether its time is over; `flow_idle` in units of [`Age`].
    #[inline(always)]
    pub const fn expired(self, now: Age, flow_idle: u16) -> bool {
        let limit = match self.state() {
            FlowState::Syn => SYN_TIMEOUT,
            FlowState::Closed => CLOSED_TIMEOUT,
            FlowState::Learnt | FlowState::Established => flow_idle,
        };
        now.since(self.age()) >= limit
    }
}

/// The tag of a hash.
#[inline(always)]
pub const fn tag(hash: u64) -> u32 {
    (hash >> 36) as u32
}

/// The bucket of a hash; `mask`: number of buckets (a power of two, at most 2³²) minus one.
#[inline(always)]
pub const fn bucket(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// The slot that a tag belongs to in a table of `size` slots, as [`crate::hash::slot`] says.
#[inline(always)]
pub const fn slot_of_tag(tag: u32, size: u32) -> u32 {
    ((tag as u64 * size as u64) >> TAG_BITS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        for state in [
            FlowState::Syn,
            FlowState::Learnt,
            FlowState::Established,
            FlowState::Closed,
        ] {
            let entry = FlowEntry::new(0x0fed_cba9, 0xabcde, state, Age(0x123));
            assert_eq!(
                (entry.tag(), entry.backend(), entry.state(), entry.age()),
                (0x0fed_cba9, 0xabcde, state, Age(0x123))
            );
            let moved = entry.with(FlowState::Closed, Age(0xfff));
            assert_eq!(
                (moved.tag(), moved.backend(), moved.state(), moved.age()),
                (0x0fed_cba9, 0xabcde, FlowState::Closed, Age(0xfff))
            );
        }
    }

    #[test]
    fn slot_follows_from_the_tag() {
        for hash in [0, 1 << 36, u64::MAX, 0x1234_5678_9abc_def0] {
            for size in [1_021, 65_537] {
                assert_eq!(slot_of_tag(tag(hash), size), crate::hash::slot(hash, size));
            }
        }
    }

    #[test]
    fn ages_turn_and_forgive_a_tick() {
        assert_eq!(Age(2).since(Age(4_094)), 4);
        assert_eq!(Age(7).since(Age(8)), 0);
        assert_eq!(Age::units(8), 3);
        assert_eq!(Age::units(7_440), 1_734);
        // n units apart is more than n − 1 units of time.
        assert!(u64::from(Age::units(60) - 1) << 32 >= 60_000_000_000);
    }
}
