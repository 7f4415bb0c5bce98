//! The slot word: one entry of a service's lookup table, eight bytes, read and written as one.
//!
//! ```text
//!  63        62 61      60  59 … 40   39 … 20      19 … 0
//! ┌────────────┬──────────┬─────────┬─────────────┬─────────────┐
//! │ mode (2)   │settling 1│ zero    │ incumbent I │ primary P   │
//! └────────────┴──────────┴─────────┴─────────────┴─────────────┘
//! ```
//! A packet reads one slot word, so it can never see a mixture of two tables.

/// Bits of a backend id.
pub const BACKEND_ID_BITS: u32 = 20;
/// Backend ids are below this; id 0 is never given to a backend and means "none".
pub const BACKEND_ID_LIMIT: u32 = 1 << BACKEND_ID_BITS;

const SETTLING_BIT: u32 = 61;
const MODE_SHIFT: u32 = 62;
const ID_MASK: u64 = (BACKEND_ID_LIMIT - 1) as u64;

/// What a slot does with packets that a change could concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Every packet goes to P; nothing is read, nothing is written.
    Steady = 0,
    /// Flows are being remembered: those of I that are met, and new ones, which go to P.
    Learn = 1,
    /// P equals I again, but flows learnt before may still name others.
    Residue = 2,
}

/// One slot of a lookup table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SlotWord(pub u64);

impl SlotWord {
    /// A slot at rest: every packet goes to `backend` (0: the service has none).
    #[inline(always)]
    pub const fn steady(backend: u32) -> Self {
        let id = backend as u64 & ID_MASK;
        Self(id | (id << BACKEND_ID_BITS))
    }

    /// A slot in any mode.
    #[inline(always)]
    pub const fn new(mode: Mode, primary: u32, incumbent: u32, settling: bool) -> Self {
        let primary = primary as u64 & ID_MASK;
        let incumbent = incumbent as u64 & ID_MASK;
        Self(
            primary
                | (incumbent << BACKEND_ID_BITS)
                | ((settling as u64) << SETTLING_BIT)
                | ((mode as u64) << MODE_SHIFT),
        )
    }

    /// What is learnt now counts as established at once: the daemon is about to end the learning.
    #[inline(always)]
    pub const fn settling(self) -> bool {
        self.0 >> SETTLING_BIT & 1 != 0
    }

    /// P: where new flows go.
    #[inline(always)]
    pub const fn primary(self) -> u32 {
        (self.0 & ID_MASK) as u32
    }

    /// I: where flows without an entry were before the change.
    #[inline(always)]
    pub const fn incumbent(self) -> u32 {
        ((self.0 >> BACKEND_ID_BITS) & ID_MASK) as u32
    }

    /// The mode; the unused fourth value reads as [`Mode::Residue`], which never inserts.
    #[inline(always)]
    pub const fn mode(self) -> Mode {
        match self.0 >> MODE_SHIFT {
            0 => Mode::Steady,
            1 => Mode::Learn,
            _ => Mode::Residue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_names_one_backend_twice() {
        for id in [0, 1, 77, BACKEND_ID_LIMIT - 1] {
            let word = SlotWord::steady(id);
            assert_eq!(
                (word.primary(), word.incumbent(), word.mode()),
                (id, id, Mode::Steady)
            );
        }
    }

    #[test]
    fn fields_do_not_overlap() {
        for (mode, settling) in [
            (Mode::Steady, false),
            (Mode::Learn, true),
            (Mode::Learn, false),
            (Mode::Residue, false),
        ] {
            let word = SlotWord::new(mode, 0x12345, 0xabcde, settling);
            assert_eq!(
                (
                    word.primary(),
                    word.incumbent(),
                    word.mode(),
                    word.settling()
                ),
                (0x12345, 0xabcde, mode, settling)
            );
        }
        assert_eq!(
            SlotWord::new(Mode::Steady, 7, 7, false),
            SlotWord::steady(7)
        );
    }
}
