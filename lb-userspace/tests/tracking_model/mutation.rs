//! Rules broken on purpose, one at a time. They live here, between the rules and the memory they work on; what ships has none.

macro_rules! mutations {
    ($($name:ident: $what:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            None,
            $($name,)*
        }

        impl Mutation {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What is wrong.
            pub const fn what(self) -> &'static str {
                match self {
                    Self::None => "nothing",
                    $(Self::$name => $what,)*
                }
            }
        }
    };
}

mutations! {
    PlainStore: "packets store entries without comparing",
    NoLossStamp: "packets do not note what they could not remember",
    EvictsEstablished: "packets give up live established entries",
    UnpinnedOpener: "an opener that could not be pinned goes to P",
    ResidueInserts: "a slot in RESIDUE remembers new flows",
    NoOwnerCheck: "an entry of another service's backend is a hit",
    SettlingIgnored: "packets do not see that a slot settles",
    EndIgnored: "FIN and RST leave no trace",
    RepinsActive: "an opener is pinned anew though its backend is ACTIVE",
    DownIsForgotten: "packets take a backend that is DOWN for GONE",
    NoFirstGrace: "settle does not wait before it converts",
    NoSecondGrace: "settle does not wait before it takes over",
    NoConversion: "settle leaves learnt entries as they are",
    LossIgnored: "settle does not look at what was lost",
    SettlesEarly: "settle waits for half of flow_idle",
    StaleStart: "learning is dated before its word was stored",
    AdoptedStart: "a restart believes that it learnt all the time",
    GoneIncumbent: "an incumbent that is GONE stays incumbent",
    NewIncumbent: "the new primary takes the place of an incumbent that is GONE, not the old one",
    DownIncumbent: "an incumbent that is DOWN is replaced at once",
    SweepsLearning: "the sweep clears entries of slots that learn",
    RestsWithoutGrace: "a slot is put to rest by a sweep that packets in flight may have deceived",
    SweepsWithoutGrace: "the sweep clears entries of P though packets in flight saw their slot learn",
    SweepsByOldClock: "the sweep judges entries by a clock that it read before",
    PurgeBeforeGrace: "entries are purged while packets still store the id",
    FreedBeforeGrace: "an id is free as soon as its entries are purged",
    FreedAtOnce: "an id is free as soon as its backend is GONE",
    SlotsFirst: "slots are written before the backends they name",
}
