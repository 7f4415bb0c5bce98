//! What tracking could not do for a packet that was forwarded all the same. One list: counters, metrics and `status` all read it.

macro_rules! events {
    ($($number:literal $variant:ident $name:literal $help:literal)*) => {
        /// Something worth counting beside a packet's verdict. Its number indexes the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Event {
            $(#[doc = $help] $variant = $number,)*
        }

        impl Event {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As in the metric `sluice_<name>_total`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for an operator, without its full stop.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

events! {
    0 PinFailed "pins_failed" "Openers that could not be pinned to the new backend of their slot, because the flow table is full there: they went where unknown flows go"
    1 LearningLost "learning_lost" "Flows of a changing slot that could not be learnt, or were given up for others: their slot learns on for longer"
}

/// Room for events in the counter map: a CPU's stretch is one cache line.
pub const EVENTS: u32 = 8;

const _: () = assert!(Event::ALL.len() <= EVENTS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_make_metrics() {
        for (i, event) in Event::ALL.iter().enumerate() {
            assert_eq!(*event as usize, i);
            let fit = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(event.name().chars().all(fit), "{}", event.name());
        }
    }
}
