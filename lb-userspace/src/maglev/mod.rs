//! Maglev lookup tables, after section 3.4 of the Maglev paper (NSDI '16), with weights.
//!
//! Owns: which slot of a table names which member, the digest by which two nodes compare their tables, and how many
//! slots move from one table to the next. Does not own: which backends are members (`state`), nor the slot words of
//! the data path (`plan`).
//!
//! **A contract for ever.** Every balancer of a fleet must send a flow to the same backend, across versions and
//! restarts. The table depends on the members' identities and weights and on the size, on nothing else: not on the
//! order of the members, the node, or its hash seed. Hash, permutation and turn rule are pinned by golden tests; a
//! change to any of them moves live connections of everyone who upgrades one node of a fleet.

mod fill;
mod identity;
mod moves;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use fill::{Permutation, populate};
pub use moves::{Moves, compare};

use identity::Identity;

/// One backend in the eyes of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What the permutation is made from; unique among the members. `192.0.2.1` and `::ffff:192.0.2.1` are the same.
    pub identity: IpAddr,
    /// Share relative to the other members; 0 = no slots.
    pub weight: u32,
}

/// Builds the table of `size` slots: for each slot, the index into `members` *as given*.
///
/// Empty if no member has weight. Shares follow the weights as [`populate`] says, and the assignment of slots to
/// identities does not depend on the order of `members`.
///
/// # Panics
/// If `size` is not a prime: a permutation would then not reach every slot.
pub fn build(members: &[Member], size: u32) -> Vec<u32> {
    assert!(
        is_prime(size),
        "the size of a Maglev table must be a prime, not {size}"
    );
    let mut order: Vec<(Identity, u32)> = (0u32..)
        .zip(members)
        .filter(|(_, member)| member.weight > 0)
        .map(|(index, member)| (Identity::of(member.identity), index))
        .collect();
    order.sort_unstable();

    let permutations: Vec<Permutation> = order
        .iter()
        .map(|(identity, _)| identity.permutation(size))
        .collect();
    let weights: Vec<u32> = order
        .iter()
        .map(|&(_, index)| members[index as usize].weight)
        .collect();
    let mut table = populate(&permutations, &weights, size);
    for slot in &mut table {
        *slot = order[*slot as usize].1;
    }
    table
}

/// A 64-bit digest of slot → identity: equal on two nodes exactly when their tables send every slot to the same
/// member (up to a chance of 2⁻⁶⁴). `table` is what [`build`] made of `members`.
pub fn digest(members: &[Member], table: &[u32]) -> u64 {
    let prints: Vec<u64> = members
        .iter()
        .map(|member| Identity::of(member.identity).fingerprint())
        .collect();
    let length = identity::mix(table.len() as u64);
    table.iter().fold(length, |digest, &slot| {
        identity::mix(digest ^ prints[slot as usize])
    })
}

/// Whether `n` is a prime. By trial division: at most 32,768 steps, and 128 for the largest size offered.
pub fn is_prime(n: u32) -> bool {
    match n {
        0 | 1 => false,
        2 => true,
        _ if n.is_multiple_of(2) => false,
        _ => (3..=n.isqrt())
            .step_by(2)
            .all(|divisor| !n.is_multiple_of(divisor)),
    }
}
