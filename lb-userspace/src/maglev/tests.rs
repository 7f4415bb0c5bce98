use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::fill::{Filling, by_weight, in_rounds};
use super::*;

const OFFERED: [u32; 4] = crate::model::TableSize::OFFERED;

fn v4(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
}

fn equal(count: u32) -> Vec<Member> {
    (1..=count)
        .map(|n| Member {
            identity: v4(n),
            weight: 1,
        })
        .collect()
}

fn counts(table: &[u32], members: usize) -> Vec<u32> {
    let mut counts = vec![0; members];
    for &slot in table {
        counts[slot as usize] += 1;
    }
    counts
}

fn identities(members: &[Member], table: &[u32]) -> Vec<IpAddr> {
    table
        .iter()
        .map(|&slot| members[slot as usize].identity)
        .collect()
}

/// Table 1 of the paper.
#[test]
fn the_papers_example() {
    let (b0, b1, b2) = ((3, 4), (0, 2), (3, 1));
    assert_eq!(
        populate(&[b0, b1, b2], &[1, 1, 1], 7),
        [1, 0, 1, 0, 2, 2, 0]
    );
    // B1 removed; here index 1 is B2.
    assert_eq!(populate(&[b0, b2], &[1, 1], 7), [0, 0, 0, 0, 1, 1, 1]);
    // B1 without weight is the same as B1 removed.
    assert_eq!(
        populate(&[b0, b1, b2], &[1, 0, 1], 7),
        [0, 0, 0, 0, 2, 2, 2]
    );
}

#[test]
fn ciliums_weights() {
    let members: Vec<Member> = [2, 13, 111, 10]
        .into_iter()
        .zip(1..)
        .map(|(weight, n)| Member {
            identity: v4(n),
            weight,
        })
        .collect();
    assert_eq!(counts(&build(&members, 1_021), 4), [16, 98, 832, 75]);
}

#[test]
fn a_thousand_backends_have_65_or_66_slots_each() {
    let members = equal(1_000);
    let counts = counts(&build(&members, 65_537), 1_000);
    assert!(
        counts.iter().all(|count| (65..=66).contains(count)),
        "{counts:?}"
    );
}

/// Means of the paper's figure 12 and of a C implementation; here over removals spread over the members.
#[test]
fn excess_moves_when_one_of_n_is_removed_stay_within_the_known_means() {
    for (count, mean_percent, removals) in [(10, 0.24, 10), (100, 0.56, 20), (655, 0.78, 20)] {
        let members = equal(count);
        let table = build(&members, 65_537);
        let mut excess = 0;
        for n in 0..removals {
            let mut fewer = members.clone();
            fewer.remove((n * count / removals) as usize);
            let smaller = build(&fewer, 65_537);
            excess += compare((&members, &table), (&fewer, &smaller)).excess;
        }
        let percent = excess as f64 / f64::from(removals) / 65_537.0 * 100.0;
        println!("N = {count}: {percent:.3} % in excess, known mean {mean_percent} %");
        assert!(
            percent <= mean_percent * 1.25,
            "N = {count}: {percent:.3} % of the slots move in excess, {mean_percent} % expected"
        );
        assert!(percent > 0.0, "excess moves are not counted at all");
    }
}

/// If this fails, the change breaks fleets: see the module header. Never adapt the numbers.
#[test]
fn golden_tables() {
    let mixed = [
        ("10.0.0.11", 1),
        ("10.0.0.12", 3),
        ("2001:db8::11", 2),
        ("2001:db8::12", 0),
    ]
    .map(|(identity, weight)| Member {
        identity: identity.parse().unwrap(),
        weight,
    });
    assert_eq!(
        Identity::of(mixed[0].identity).permutation(65_537),
        GOLDEN_PERMUTATION_V4
    );
    assert_eq!(
        Identity::of(mixed[2].identity).permutation(65_537),
        GOLDEN_PERMUTATION_V6
    );
    assert_eq!(build(&mixed, 1_021)[..16], GOLDEN_SLOTS);
    let digests = OFFERED.map(|size| digest(&mixed, &build(&mixed, size)));
    assert_eq!(digests, GOLDEN_DIGESTS, "{digests:#x?}");
    let hundred = equal(100);
    let plain = digest(&hundred, &build(&hundred, 65_537));
    assert_eq!(plain, GOLDEN_DIGEST_OF_100, "{plain:#x}");
}

// Computed by a second implementation, written from the description in this module in another language.
const GOLDEN_PERMUTATION_V4: (u32, u32) = (59_130, 8_028);
const GOLDEN_PERMUTATION_V6: (u32, u32) = (160, 64_672);
const GOLDEN_SLOTS: [u32; 16] = [2, 2, 0, 1, 2, 2, 1, 1, 1, 0, 1, 1, 1, 2, 1, 2];
const GOLDEN_DIGESTS: [u64; 4] = [
    0x1614_da5e_47e0_da1a,
    0xf455_6ccf_b6f8_2ff8,
    0x1a04_5f60_cc5b_8a16,
    0x8490_4a57_5748_b01f,
];
const GOLDEN_DIGEST_OF_100: u64 = 0x0a87_f4fb_a459_ba32;

#[test]
fn the_digest_tells_tables_apart() {
    let members = equal(4);
    let table = build(&members, 1_021);
    let known = digest(&members, &table);
    let mut swapped = table.clone();
    let other = swapped.iter().position(|&slot| slot != table[0]).unwrap();
    swapped.swap(0, other);
    assert_ne!(digest(&members, &swapped), known);
    assert_ne!(digest(&members, &table[..1_020]), known);
    let mut renamed = members.clone();
    renamed[0].identity = v4(99);
    assert_ne!(digest(&renamed, &table), known);
}

#[test]
fn nobody_with_weight_makes_an_empty_table() {
    assert!(build(&[], 1_021).is_empty());
    let idle = [Member {
        identity: v4(1),
        weight: 0,
    }];
    assert!(build(&idle, 1_021).is_empty());
}

#[test]
fn a_v4_mapped_identity_is_the_v4_identity() {
    let plain = equal(3);
    let mapped: Vec<Member> = plain
        .iter()
        .map(|member| Member {
            identity: match member.identity {
                IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
                v6 => v6,
            },
            ..*member
        })
        .collect();
    assert_eq!(build(&plain, 1_021), build(&mapped, 1_021));
}

#[test]
fn primes() {
    let small: Vec<u32> = (0..50).filter(|&n| is_prime(n)).collect();
    assert_eq!(
        small,
        [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]
    );
    assert!(OFFERED.into_iter().all(is_prime));
    assert!(is_prime(4_294_967_291) && !is_prime(u32::MAX));
    assert!(!is_prime(65_521 * 65_521));
}

#[test]
#[should_panic(expected = "must be a prime, not 8192")]
fn a_size_that_is_no_prime_is_refused() {
    build(&equal(2), 8_192);
}

#[test]
fn moves_between_tables_that_cannot_be_compared_slot_by_slot() {
    let members = equal(3);
    let table = build(&members, 1_021);
    let all = Moves {
        moved: 1_021,
        excess: 0,
    };
    assert_eq!(compare((&[], &[]), (&members, &table)), all);
    assert_eq!(compare((&members, &table), (&[], &[])), all);
    assert_eq!(
        compare((&members, &table), (&members, &table)),
        Moves::default()
    );
    // Another size is a full re-learning: most slots move.
    let larger = build(&members, 4_093);
    let moves = compare((&members, &table), (&members, &larger));
    assert!(
        moves.moved > 2_000 && moves.excess == moves.moved,
        "{moves:?}"
    );
}

fn any_identity() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        (1u32..500).prop_map(v4),
    ]
}

fn any_members(most: usize, heaviest: u32) -> impl Strategy<Value = Vec<Member>> {
    prop::collection::hash_map(any_identity(), 0..=heaviest, 1..most).prop_map(|members| {
        members
            .into_iter()
            .map(|(identity, weight)| Member { identity, weight })
            .collect()
    })
}

fn any_size() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(1_021u32),
        2 => Just(4_093u32),
        1 => prop::sample::select(vec![2u32, 3, 7, 101, 251, 16_381]),
    ]
}

proptest! {
    #[test]
    fn every_slot_is_filled_and_shares_follow_weights(members in any_members(60, 1_000), size in any_size()) {
        let sum: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        let table = build(&members, size);
        prop_assert_eq!(table.len(), if sum == 0 { 0 } else { size as usize });
        for (count, member) in counts(&table, members.len()).into_iter().zip(&members) {
            if member.weight == 0 {
                prop_assert_eq!(count, 0);
                continue;
            }
            let share = f64::from(size) * f64::from(member.weight) / sum as f64;
            let over = f64::from(count) - share;
            let per_unit = over.abs() / f64::from(member.weight);
            prop_assert!(per_unit <= 1.0 + 1e-9, "{} slots for a share of {}", count, share);
            prop_assert!(over < 2.0, "{} slots for a share of {}", count, share);
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter(
        (members, shuffled) in any_members(40, 5).prop_flat_map(|members| {
            (Just(members.clone()), Just(members).prop_shuffle())
        }),
        size in any_size(),
    ) {
        let (one, other) = (build(&members, size), build(&shuffled, size));
        prop_assert_eq!(identities(&members, &one), identities(&shuffled, &other));
        prop_assert_eq!(digest(&members, &one), digest(&shuffled, &other));
    }

    #[test]
    fn multiplying_all_weights_changes_nothing(members in any_members(30, 40), factor in 1u32..1_000) {
        let heavier: Vec<Member> = members
            .iter()
            .map(|member| Member { weight: member.weight * factor, ..*member })
            .collect();
        prop_assert_eq!(build(&members, 1_021), build(&heavier, 1_021));
    }

    #[test]
    fn with_equal_weights_both_turn_rules_agree(members in any_members(60, 0), weight in 1u32..50) {
        let permutations: Vec<Permutation> = members
            .iter()
            .map(|member| Identity::of(member.identity).permutation(1_021))
            .collect();
        let weights = vec![weight; members.len()];
        prop_assert_eq!(
            in_rounds(Filling::new(&permutations, 1_021)),
            by_weight(Filling::new(&permutations, 1_021), &weights, weight)
        );
    }

    #[test]
    fn moves_are_counted_as_defined(before in any_members(20, 3), after in any_members(20, 3)) {
        let (old, new) = (build(&before, 1_021), build(&after, 1_021));
        prop_assume!(!old.is_empty() && !new.is_empty());
        let weights = |members: &[Member]| -> HashMap<IpAddr, u32> {
            members.iter().map(|member| (member.identity, member.weight)).collect()
        };
        let (old_weights, new_weights) = (weights(&before), weights(&after));
        let stays = |identity: &IpAddr| {
            old_weights.get(identity).is_some_and(|weight| new_weights.get(identity) == Some(weight))
        };
        let pairs = identities(&before, &old).into_iter().zip(identities(&after, &new));
        let moved: Vec<_> = pairs.filter(|(was, is)| was != is).collect();
        let excess = moved.iter().filter(|(was, is)| stays(was) && stays(is)).count();
        prop_assert_eq!(
            compare((&before, &old), (&after, &new)),
            Moves { moved: moved.len() as u64, excess: excess as u64 }
        );
    }
}

proptest! {
    // A fixed seed, because the bound is statistical: two members whose permutations happen to be related (chance about
    // members²/size) can trade far more slots. Measured over 20,000 sets of members, mean and worst single removal:
    // 0.24 % and 1.3 % of 65,537 slots for 10 members (300 sets), 1.1 % and 11 % of 4,093, 2.4 % and 13 % of 1,021.
    #![proptest_config(ProptestConfig {
        cases: 48,
        rng_seed: RngSeed::Fixed(2016),
        ..ProptestConfig::default()
    })]

    /// The bound stated for a removal: beside the removed member's own slots, at most 3 % of a table of 65,537.
    #[test]
    fn a_removal_moves_the_members_own_slots_and_few_others(
        members in any_members(100, 0),
        removed in any::<prop::sample::Index>(),
    ) {
        let members: Vec<Member> = members.into_iter().map(|member| Member { weight: 1, ..member }).collect();
        let removed = removed.index(members.len());
        let mut fewer = members.clone();
        fewer.remove(removed);
        let (old, new) = (build(&members, 65_537), build(&fewer, 65_537));
        let own = u64::from(counts(&old, members.len())[removed]);
        let moves = compare((&members, &old), (&fewer, &new));
        prop_assert_eq!(moves.moved, own + moves.excess);
        prop_assert!(moves.excess <= 65_537 * 3 / 100, "{:?}, {} members", moves, members.len());
    }
}
