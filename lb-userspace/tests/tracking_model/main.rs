//! Connections survive change: the packets' rules and the daemon's, run against each other, one access at a time.
//!
//! A history is a few dozen random events: packets on three CPUs, an operator's wishes, failing probes, floods, forgeries, time, and
//! a daemon that may be killed. Packets are [`lb_common::track`] itself, the daemon is [`lb_userspace::tracking`] itself; each access
//! of theirs to shared memory is a step between which any other may run. An onlooker knows where each connection lives, and checks
//! the promises I1 to I9 after every burst. Breaks with a cause that the documentation names are counted by cause.
//!
//! What is assumed of a network: a packet is in flight for less than a tick of the clock, and a client's answer to an answer does not
//! overtake the packet that was answered first.
//!
//! - `SLUICE_MODEL_HISTORIES`: how many, instead of a million.
//! - `SLUICE_MODEL_SEED`: replays one history and prints it; with `SLUICE_MODEL_MUTATION=NAME`, under a mutation.

mod daemon;
mod flows;
mod history;
mod mutation;
mod packet;
mod random;
mod world;

use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};

use flows::Cause;
use history::{History, Summary};
use mutation::Mutation;

/// Histories of the normal run.
const HISTORIES: u64 = 1_000_000;
/// Histories in which a mutation must be caught.
const PATIENCE: u64 = 3_000_000;

fn main() {
    if let Some(seed) = variable("SLUICE_MODEL_SEED") {
        let name = std::env::var("SLUICE_MODEL_MUTATION").unwrap_or_default();
        let mutation = Mutation::ALL.iter().find(|m| format!("{m:?}") == name);
        let (summary, trace) =
            History::new(seed, mutation.copied().unwrap_or(Mutation::None), true).run();
        println!("{}\n{summary:?}", trace.join("\n"));
        return;
    }
    let mut trials = vec![Trial::test("promises_hold", promises_hold)];
    trials.extend(
        Mutation::ALL.iter().map(|&mutation| {
            Trial::test(format!("catches::{mutation:?}"), move || catches(mutation))
        }),
    );
    let mut arguments = Arguments::from_args();
    // What they print is part of the proof; one after the other it is readable.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn promises_hold() -> Result<(), Failed> {
    let histories = variable("SLUICE_MODEL_HISTORIES").unwrap_or(HISTORIES);
    let started = Instant::now();
    let mut total = Summary::default();
    let (mut packets, mut accesses) = (0_u64, 0_u64);
    let (mut settled, mut rested, mut unpinned) = (0_u64, 0_u64, 0_u64);
    for seed in 0..histories {
        let (summary, _) = History::new(seed, Mutation::None, false).run();
        if summary.broken.is_some() {
            return Err(report(seed, Mutation::None));
        }
        packets += u64::from(summary.packets);
        accesses += u64::from(summary.accesses);
        settled += u64::from(summary.settled);
        rested += u64::from(summary.rested);
        unpinned += u64::from(summary.unpinned);
        for (sum, lost) in total.lost.iter_mut().zip(summary.lost) {
            *sum += lost;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{histories} histories in {seconds:.1} s ({:.0} a second): {packets} packets, {accesses} accesses, {settled} slots left \
         learning, {rested} came to rest, {unpinned} openers without a pin",
        histories as f64 / seconds
    );
    for cause in Cause::ALL {
        println!(
            "  {:>8} connections broken: {}",
            total.lost[cause as usize],
            cause.what()
        );
    }
    Ok(())
}

fn catches(mutation: Mutation) -> Result<(), Failed> {
    let patience = variable("SLUICE_MODEL_HISTORIES").map_or(PATIENCE, |n| n.max(PATIENCE));
    for seed in 0..patience {
        let (summary, _) = History::new(seed, mutation, false).run();
        if let Some(broken) = summary.broken {
            println!(
                "{mutation:?} ({}): caught by {} in history {seed}: {}",
                mutation.what(),
                broken.name,
                broken.what
            );
            return Ok(());
        }
    }
    Err(format!(
        "{} histories did not notice that {}",
        patience,
        mutation.what()
    )
    .into())
}

/// The whole history that broke a promise, for people.
fn report(seed: u64, mutation: Mutation) -> Failed {
    let (summary, trace) = History::new(seed, mutation, true).run();
    let broken = summary.broken.map_or_else(String::new, |broken| {
        format!("{}: {}", broken.name, broken.what)
    });
    format!(
        "{broken}\n{}\nreplay: SLUICE_MODEL_SEED={seed} cargo test -p lb-userspace --test tracking_model",
        trace.join("\n")
    )
    .into()
}
