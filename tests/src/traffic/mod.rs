//! Long-lived traffic through a VIP: TCP connections and UDP flows that say something every 100 ms, each thing with a number.
//!
//! Owns: saying, listening, and knowing which numbers went missing and which flow was answered by another backend. Does not
//! own: what happens to the balancer meanwhile (the suites), nor frames (`tally`).

mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::topology::Lab;
use crate::wait::wait_until;

/// Between two things that a connection or flow says. A busy machine may be slower; that is no failure.
pub const PACE: Duration = Duration::from_millis(100);

/// How long a line's answer may take before its connection counts as broken: several retransmissions, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of a connection or flow.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The backend that answered first.
    pub name: String,
    pub protocol: &'static str,
    /// Why it is over, if it is: what happened to which number.
    pub broken: Option<String>,
    /// Lines or datagrams.
    pub said: u64,
    pub answered: u64,
}

/// What the talking threads are told.
///
/// Even: talk. Odd: be silent. [`END`]: end. Each time another number, so that nobody takes an old silence for the new one.
#[derive(Debug, Default)]
struct Wish(AtomicU64);

const END: u64 = u64::MAX;

/// What one talking thread tells.
#[derive(Debug, Default)]
struct Progress {
    /// The wish it last followed.
    followed: AtomicU64,
    /// Times that each of its connections or flows has spoken.
    rounds: AtomicU64,
    /// Things said that have not been answered (yet).
    outstanding: AtomicU64,
    said: AtomicU64,
}

/// What a talking thread is given.
struct Desk {
    wish: Arc<Wish>,
    progress: Arc<Progress>,
    /// What broke, of all threads, in that order.
    broken: Arc<Mutex<Vec<String>>>,
}

/// What to do next.
enum Next {
    Talk,
    BeSilent,
    End,
}

impl Desk {
    fn next(&self) -> Next {
        let wish = self.wish.0.load(Ordering::SeqCst);
        self.progress.followed.store(wish, Ordering::SeqCst);
        match wish {
            END => Next::End,
            odd if odd % 2 == 1 => Next::BeSilent,
            _ => Next::Talk,
        }
    }

    fn report(&self, what: String) {
        lock(&self.broken).push(what);
    }
}

struct Talker {
    progress: Arc<Progress>,
    thread: JoinHandle<Vec<Outcome>>,
}

/// Connections and flows that talk until they are stopped.
pub struct Traffic {
    wish: Arc<Wish>,
    broken: Arc<Mutex<Vec<String>>>,
    talkers: Vec<Talker>,
}

impl Traffic {
    /// Opens `connections` over TCP and `flows` over UDP to the echo servers behind `vip`, in turn from each of the client's
    /// addresses. Each has been answered once when this returns.
    pub fn start(lab: &Lab, vip: SocketAddr, connections: usize, flows: usize) -> Result<Self> {
        let mut traffic = Self {
            wish: Arc::default(),
            broken: Arc::default(),
            talkers: Vec::new(),
        };
        // A thread waits for one answer at a time: several keep the pace.
        let addresses = lab.client().sources(vip.ip()).len();
        for address in 0..addresses {
            let count = share(connections, addresses, address);
            let open = tcp::open(lab.client(), vip, address, count)?;
            traffic.talk(move |desk| tcp::talk(open, desk))?;
        }
        if flows > 0 {
            let open = udp::open(lab.client(), vip, flows)?;
            traffic.talk(move |desk| udp::talk(open, desk))?;
        }
        Ok(traffic)
    }

    fn talk(&mut self, work: impl FnOnce(&Desk) -> Vec<Outcome> + Send + 'static) -> Result<()> {
        let progress = Arc::new(Progress::default());
        let desk = Desk {
            wish: Arc::clone(&self.wish),
            progress: Arc::clone(&progress),
            broken: Arc::clone(&self.broken),
        };
        let thread = std::thread::Builder::new()
            .name("traffic".to_owned())
            .spawn(move || work(&desk))?;
        self.talkers.push(Talker { progress, thread });
        Ok(())
    }

    /// Waits until every connection and flow has spoken `rounds` more times.
    pub fn go_on(&self, rounds: u64) -> Result<()> {
        let now = |talker: &Talker| talker.progress.rounds.load(Ordering::SeqCst);
        // One more: the round that is under way began before.
        let targets: Vec<u64> = self.talkers.iter().map(|t| now(t) + rounds + 1).collect();
        let limit = 2 * PATIENCE + PACE * 10 * rounds as u32;
        wait_until("traffic to go on", limit, || {
            Ok(self
                .talkers
                .iter()
                .zip(&targets)
                .all(|(t, &target)| now(t) >= target))
        })?;
        Ok(())
    }

    /// Lets nobody speak while the returned value lives. Everything said before has been answered, or is lost.
    pub fn hush(&self) -> Result<Hush<'_>> {
        let hush = Hush(self);
        let wish = self.wish.0.fetch_add(1, Ordering::SeqCst) + 1;
        wait_until("the traffic to fall silent", 2 * PATIENCE, || {
            Ok(self
                .talkers
                .iter()
                .all(|t| t.progress.followed.load(Ordering::SeqCst) == wish))
        })?;
        wait_until("every datagram to be answered", udp::PATIENCE, || {
            let outstanding = self.sum(|progress| &progress.outstanding);
            ensure!(outstanding == 0, "{outstanding} have not been answered");
            Ok(true)
        })?;
        Ok(hush)
    }

    /// Everything said so far, lines and datagrams. Exact while they are silent.
    pub fn said(&self) -> u64 {
        self.sum(|progress| &progress.said)
    }

    /// What broke so far: moved, reset, lost.
    pub fn broken(&self) -> Vec<String> {
        lock(&self.broken).clone()
    }

    /// An error that names what broke first, if anything did.
    pub fn ensure_whole(&self) -> Result<()> {
        let broken = self.broken();
        ensure!(
            broken.is_empty(),
            "{} connections and flows broke: {}",
            broken.len(),
            broken[..broken.len().min(5)].join("; ")
        );
        Ok(())
    }

    /// Ends the talk, hears what is still on its way, and says what became of each.
    pub fn stop(mut self) -> Result<Vec<Outcome>> {
        self.wish.0.store(END, Ordering::SeqCst);
        let mut all = Vec::new();
        for talker in self.talkers.drain(..) {
            let outcomes = talker.thread.join().ok();
            all.extend(outcomes.context("a talking thread panicked")?);
        }
        Ok(all)
    }

    fn sum(&self, of: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.talkers
            .iter()
            .map(|talker| of(&talker.progress).load(Ordering::SeqCst))
            .sum()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Threads end by themselves soon after; a failing test does not wait for them.
        self.wish.0.store(END, Ordering::SeqCst);
    }
}

/// Silence, until it is dropped.
pub struct Hush<'a>(&'a Traffic);

impl Drop for Hush<'_> {
    fn drop(&mut self) {
        self.0.wish.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// How many of `count` the one with this number of `sharers` gets.
const fn share(count: usize, sharers: usize, number: usize) -> usize {
    count / sharers + (number < count % sharers) as usize
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (count, sharers) in [(500, 4), (7, 3), (2, 4), (0, 1)] {
            let shares: Vec<_> = (0..sharers).map(|n| share(count, sharers, n)).collect();
            assert_eq!(shares.iter().sum::<usize>(), count);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }
}
