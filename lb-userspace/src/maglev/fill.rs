//! Filling a table from permutations: the loop of the paper, and the order in which weighted members take turns.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// (offset, skip): a member prefers slot `offset`, then `offset + skip`, `offset + 2·skip` …, all modulo the size.
pub type Permutation = (u32, u32);

/// Fills a table of `size` slots; for each slot, the index of the member that took it. Empty if all weights are 0.
///
/// Members take turns; in its turn a member takes the next slot of its permutation that is still free. With equal
/// weights every member has one turn per round, in the order given: the paper's algorithm. With weights, member *i*
/// has had ⌈r·wᵢ/w_max⌉ turns after round *r*: its turns are spread evenly, the heaviest member has one in every
/// round, and each has one in the first. So a member's number of slots differs from its exact share `size·wᵢ/Σw` by
/// at most one slot per unit of weight (and exceeds it by less than two), and multiplying all weights by a number
/// changes nothing.
///
/// # Panics
/// If the slices differ in length, or an offset or a skip is out of range. `size` must be a prime; this is checked by
/// [`super::build`].
pub fn populate(permutations: &[Permutation], weights: &[u32], size: u32) -> Vec<u32> {
    assert_eq!(permutations.len(), weights.len(), "one weight per member");
    for &(offset, skip) in permutations {
        assert!(
            offset < size && (1..size.max(2)).contains(&skip),
            "permutation ({offset}, {skip}) does not fit a table of {size} slots"
        );
    }
    let Some(&heaviest) = weights.iter().max().filter(|&&heaviest| heaviest > 0) else {
        return Vec::new();
    };
    let table = Filling::new(permutations, size);
    if weights.iter().all(|&weight| weight == heaviest) {
        in_rounds(table)
    } else {
        by_weight(table, weights, heaviest)
    }
}

/// Everyone has one turn per round.
pub(super) fn in_rounds(mut table: Filling) -> Vec<u32> {
    let members = table.cursors.len() as u32;
    loop {
        for member in 0..members {
            if table.take_turn(member) {
                return table.slots;
            }
        }
    }
}

/// Turns by weight. A heap of (round, member) costs O(log members) per turn however unequal the weights are, where
/// visiting everyone in every round would cost O(members · heaviest / lightest).
pub(super) fn by_weight(mut table: Filling, weights: &[u32], heaviest: u32) -> Vec<u32> {
    // Turn t of a member (from 0) falls in round ⌊t·heaviest/weight⌋: stepped without division, as Bresenham does.
    struct Pace {
        weight: u32,
        step: u32,
        rest: u32,
        owed: u32,
    }
    let mut paces: Vec<Pace> = weights
        .iter()
        .map(|&weight| Pace {
            weight,
            step: heaviest.checked_div(weight).unwrap_or(0),
            rest: heaviest.checked_rem(weight).unwrap_or(0),
            owed: 0,
        })
        .collect();
    let mut turns: BinaryHeap<Reverse<(u32, u32)>> = (0u32..)
        .zip(weights)
        .filter(|&(_, &weight)| weight > 0)
        .map(|(member, _)| Reverse((0, member)))
        .collect();

    while let Some(mut turn) = turns.peek_mut() {
        let Reverse((round, member)) = *turn;
        if table.take_turn(member) {
            PeekMut::pop(turn);
            break;
        }
        let pace = &mut paces[member as usize];
        let mut next = round.saturating_add(pace.step);
        // owed and rest are below weight: compare without a sum that could overflow.
        if pace.owed >= pace.weight - pace.rest {
            pace.owed -= pace.weight - pace.rest;
            next = next.saturating_add(1);
        } else {
            pace.owed += pace.rest;
        }
        // A round that saturates is never reached: the heaviest member fills one slot per round.
        *turn = Reverse((next, member));
    }
    table.slots
}

/// A table that is being filled.
pub(super) struct Filling {
    slots: Vec<u32>,
    /// One bit per slot, set when taken. 8 KiB for the largest table offered, so the search for a free slot, about
    /// ln(size) steps per turn, stays in the first-level cache; the slots themselves (256 KiB) would not.
    taken: Vec<u64>,
    free: u32,
    cursors: Vec<Cursor>,
}

/// Where a member stands in its permutation.
struct Cursor {
    slot: u32,
    skip: u32,
    /// `size - skip`: from here on, the next step wraps around. Saves a modulo, and cannot overflow.
    wrap: u32,
}

impl Filling {
    pub(super) fn new(permutations: &[Permutation], size: u32) -> Self {
        Self {
            slots: vec![0; size as usize],
            taken: vec![0; size.div_ceil(64) as usize],
            free: size,
            cursors: permutations
                .iter()
                .map(|&(offset, skip)| Cursor {
                    slot: offset,
                    skip,
                    wrap: size - skip,
                })
                .collect(),
        }
    }

    /// Gives `member` its next free slot; true when that was the last one. There must be a free slot: then the walk
    /// ends, because in a table of prime size a permutation meets every slot.
    #[inline]
    fn take_turn(&mut self, member: u32) -> bool {
        let cursor = &mut self.cursors[member as usize];
        let mut slot = cursor.slot;
        while self.taken[slot as usize / 64] >> (slot % 64) & 1 != 0 {
            slot = if slot >= cursor.wrap {
                slot - cursor.wrap
            } else {
                slot + cursor.skip
            };
        }
        // The cursor stays on the slot just taken; the next turn steps over it.
        cursor.slot = slot;
        self.taken[slot as usize / 64] |= 1 << (slot % 64);
        self.slots[slot as usize] = member;
        self.free -= 1;
        self.free == 0
    }
}
