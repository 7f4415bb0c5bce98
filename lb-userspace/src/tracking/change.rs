//! What a new lookup table, or a backend's new status, does to the slots of a service.

use lb_common::slot::{Mode, SlotWord};
use lb_common::track::Status;

use super::{Backends, Book, SharedMemory};
use crate::model::Tracking;

/// What becomes of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub word: SlotWord,
    /// Learning begins (again): its start is the moment after the word is stored.
    pub begins: bool,
}

/// The rule for one slot. `primary` is the new table's backend; `status` and `came_back` (from DOWN, in this change) are asked
/// about the incumbent.
pub fn changed(
    old: SlotWord,
    primary: u32,
    tracking: Tracking,
    status: impl Fn(u32) -> Status,
    came_back: impl Fn(u32) -> bool,
) -> Changed {
    // Nobody is left on an incumbent that is GONE, and since it is, unknown flows go to the primary: the old one, for this change
    // comes after the status, perhaps by a daemon's whole down time.
    let incumbent = match (status(old.incumbent()), status(old.primary())) {
        (Status::Gone, Status::Gone) => primary,
        (Status::Gone, _) => old.primary(),
        _ => old.incumbent(),
    };
    let mode = match tracking {
        Tracking::Off => {
            return Changed {
                word: SlotWord::steady(primary),
                begins: false,
            };
        }
        // Without a backend there is nothing to remember.
        Tracking::Always if primary != 0 => Mode::Learn,
        _ if incumbent != primary => Mode::Learn,
        _ if old.mode() == Mode::Steady => Mode::Steady,
        _ => Mode::Residue,
    };
    Changed {
        word: SlotWord::new(mode, primary, incumbent, false),
        // Flows that have another incumbent now were not learnt, nor were those of one that was down.
        begins: mode == Mode::Learn
            && (old.mode() != Mode::Learn || incumbent != old.incumbent() || came_back(incumbent)),
    }
}

/// The word of a slot that no packet has been led to yet.
pub const fn fresh(primary: u32, tracking: Tracking) -> SlotWord {
    match tracking {
        Tracking::Always if primary != 0 => SlotWord::new(Mode::Learn, primary, primary, false),
        _ => SlotWord::steady(primary),
    }
}

/// Puts a service's new table in force: `primaries[i]` for slot `first + i`. The statuses are written before, so that no packet
/// meets a slot that names a backend it cannot judge. Returns how many words were stored.
pub fn change<M: SharedMemory, B: Backends>(
    memory: &M,
    book: &mut Book,
    backends: &B,
    first: u32,
    primaries: &[u32],
    tracking: Tracking,
    came_back: impl Fn(u32) -> bool,
) -> usize {
    let mut stored = 0;
    for (slot, &primary) in (first..).zip(primaries) {
        let old = memory.slot(slot);
        let status = |backend| backends.status(backend);
        let Changed { word, begins } = changed(old, primary, tracking, status, &came_back);
        if word != old {
            memory.store_slot(slot, word);
            stored += 1;
            if old.mode() == Mode::Learn && word.mode() != Mode::Learn {
                book.leaves(slot);
            }
        }
        if begins {
            book.begins(slot, memory.clock());
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const GONE: u32 = 9;

    fn rule(old: SlotWord, primary: u32, tracking: Tracking) -> (Mode, u32, u32, bool) {
        let status = |id| {
            if id == GONE || id == 0 {
                Status::Gone
            } else {
                Status::Active
            }
        };
        let changed = changed(old, primary, tracking, status, |_| false);
        let word = changed.word;
        (
            word.mode(),
            word.primary(),
            word.incumbent(),
            changed.begins,
        )
    }

    #[test]
    fn a_slot_that_moves_learns_and_one_that_moves_back_is_residue() {
        use Tracking::Adaptive;
        let learn = SlotWord::new(Mode::Learn, B, A, true);
        let residue = SlotWord::new(Mode::Residue, A, A, false);
        for (old, primary, expected) in [
            (SlotWord::steady(A), A, (Mode::Steady, A, A, false)),
            (SlotWord::steady(A), B, (Mode::Learn, B, A, true)),
            (learn, B, (Mode::Learn, B, A, false)),
            (learn, A, (Mode::Residue, A, A, false)),
            (residue, B, (Mode::Learn, B, A, true)),
            (residue, A, (Mode::Residue, A, A, false)),
            (SlotWord::steady(GONE), B, (Mode::Steady, B, B, false)),
            (SlotWord::steady(0), B, (Mode::Steady, B, B, false)),
            (
                SlotWord::new(Mode::Learn, A, GONE, false),
                B,
                (Mode::Learn, B, A, true),
            ),
            (
                SlotWord::new(Mode::Learn, A, GONE, false),
                A,
                (Mode::Residue, A, A, false),
            ),
            (
                SlotWord::new(Mode::Learn, GONE, GONE, false),
                B,
                (Mode::Residue, B, B, false),
            ),
        ] {
            assert_eq!(
                rule(old, primary, Adaptive),
                expected,
                "{old:?} to {primary}"
            );
        }
    }

    #[test]
    fn always_learns_and_off_never_does() {
        let steady = SlotWord::steady(A);
        assert_eq!(rule(steady, A, Tracking::Always), (Mode::Learn, A, A, true));
        assert_eq!(rule(steady, B, Tracking::Always), (Mode::Learn, B, A, true));
        assert_eq!(rule(steady, B, Tracking::Off), (Mode::Steady, B, B, false));
        // Where there is no backend there is nothing to learn; what is remembered is followed until it is gone.
        let none = SlotWord::steady(0);
        assert_eq!(rule(none, 0, Tracking::Always), (Mode::Steady, 0, 0, false));
        assert_eq!(rule(none, A, Tracking::Always), (Mode::Learn, A, A, true));
        let learn = SlotWord::new(Mode::Learn, A, A, false);
        assert_eq!(rule(learn, 0, Tracking::Always), (Mode::Learn, 0, A, false));
        let nobody = SlotWord::new(Mode::Learn, 0, GONE, false);
        assert_eq!(
            rule(nobody, 0, Tracking::Always),
            (Mode::Residue, 0, 0, false)
        );
    }

    #[test]
    fn a_fresh_slot_learns_only_where_everything_is_remembered() {
        for (tracking, primary, expected) in [
            (Tracking::Adaptive, A, SlotWord::steady(A)),
            (Tracking::Off, A, SlotWord::steady(A)),
            (Tracking::Always, A, SlotWord::new(Mode::Learn, A, A, false)),
            (Tracking::Always, 0, SlotWord::steady(0)),
        ] {
            assert_eq!(fresh(primary, tracking), expected, "{tracking:?}");
        }
    }

    #[test]
    fn what_is_remembered_changes_hands_safely() {
        // To "always" everything that was not learning begins now; from it, entries are followed until none is left.
        let residue = SlotWord::new(Mode::Residue, A, A, false);
        let learn = SlotWord::new(Mode::Learn, B, A, false);
        let all = SlotWord::new(Mode::Learn, A, A, false);
        for (old, primary, tracking, expected) in [
            (residue, A, Tracking::Always, (Mode::Learn, A, A, true)),
            (learn, B, Tracking::Always, (Mode::Learn, B, A, false)),
            (all, A, Tracking::Adaptive, (Mode::Residue, A, A, false)),
            (all, B, Tracking::Adaptive, (Mode::Learn, B, A, false)),
            (learn, B, Tracking::Adaptive, (Mode::Learn, B, A, false)),
            (all, A, Tracking::Off, (Mode::Steady, A, A, false)),
        ] {
            assert_eq!(rule(old, primary, tracking), expected, "{old:?}");
        }
    }

    #[test]
    fn an_incumbent_that_came_back_is_learnt_anew() {
        let old = SlotWord::new(Mode::Learn, B, A, false);
        let status = |_| Status::Active;
        assert!(changed(old, B, Tracking::Adaptive, status, |id| id == A).begins);
        assert!(!changed(old, B, Tracking::Adaptive, status, |id| id == B).begins);
    }
}
