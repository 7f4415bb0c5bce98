//! What a change of members costs: slots that move, and those of them that need not have.

use std::collections::HashMap;

use super::Member;
use super::identity::Identity;

/// How two tables differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Slots that name another identity than before.
    pub moved: u64,
    /// Of these, slots whose old and new identity are both members before and after, with unchanged weight: the price
    /// of Maglev's even shares, not of the change itself.
    pub excess: u64,
}

/// Compares the table of `before` with that of `after`; each table is what [`super::build`] made of its members.
///
/// If one table is empty, every slot of the other has moved. If the sizes differ, each slot of the new table is
/// compared with the old slot at the same place of the hash space; that estimates the share of flows that move.
pub fn compare(before: (&[Member], &[u32]), after: (&[Member], &[u32])) -> Moves {
    let (old_members, old_table) = before;
    let (new_members, new_table) = after;
    if old_table.is_empty() || new_table.is_empty() {
        return Moves {
            moved: old_table.len().max(new_table.len()) as u64,
            excess: 0,
        };
    }
    let old = annotate(old_members, new_members);
    let new = annotate(new_members, old_members);

    let mut moves = Moves::default();
    for (slot, &now) in new_table.iter().enumerate() {
        let (now_is, now_stays) = new[now as usize];
        let (was, was_stays) = old[old_table[slot * old_table.len() / new_table.len()] as usize];
        if was != now_is {
            moves.moved += 1;
            moves.excess += u64::from(was_stays && now_stays);
        }
    }
    moves
}

/// Each member's identity, and whether `others` has it with the same weight.
fn annotate(members: &[Member], others: &[Member]) -> Vec<(Identity, bool)> {
    let others: HashMap<Identity, u32> = others
        .iter()
        .map(|member| (Identity::of(member.identity), member.weight))
        .collect();
    members
        .iter()
        .map(|member| {
            let identity = Identity::of(member.identity);
            (identity, others.get(&identity) == Some(&member.weight))
        })
        .collect()
}
