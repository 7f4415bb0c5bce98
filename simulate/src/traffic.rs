//! Clients: when connections begin, how long they last, when they speak; and who forges packets.

use std::collections::VecDeque;

use lb_common::address::Address;
use lb_common::hash::{FlowKey, HashKeys, five_tuple};
use lb_common::track::Kind;
use lb_userspace::tracking::SECOND;

use crate::random::Random;
use crate::scenario::{Class, Flood, FloodKind, Mix, Spread};

/// Between a forged opener and the packet that pretends to end its handshake.
const HANDSHAKE: u64 = SECOND / 10;

/// What a connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Opening,
    Open,
    /// FIN sent.
    Closing,
}

/// A client's connection. It only depends on the scenario's seed and its number, not on what a balancer does to it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub hash: u64,
    pub stage: Stage,
    /// The backend that answered its opener.
    pub own: u32,
    /// When it sent last.
    pub last: u64,
    pub balancer: Option<u32>,
    pub other_balancer: bool,
    /// Transmissions since the last answer.
    pub tries: u32,
    pub ends: u64,
    /// Ends without a FIN.
    pub vanishes: bool,
    class: u8,
    random: Random,
}

impl Connection {
    pub fn new(seed: u64, number: u64, keys: &HashKeys, mix: &Mix, now: u64) -> Self {
        let mut random = Random::new(seed, number);
        let mut at = random.share();
        let mut class = mix.classes.len() - 1;
        for (index, candidate) in mix.classes.iter().enumerate() {
            at -= candidate.share;
            if at <= 0.0 {
                class = index;
                break;
            }
        }
        let life = draw(&mix.classes[class].life, &mut random);
        Self {
            hash: hash(keys, &mut random),
            stage: Stage::Opening,
            own: 0,
            last: now,
            balancer: None,
            other_balancer: false,
            tries: 0,
            ends: now + mix.round_trip.nanos() + life,
            vanishes: random.share() < mix.vanish,
            class: class as u8,
            random,
        }
    }

    /// When it sends next, if nothing is lost.
    pub fn next(&mut self, classes: &[Class], now: u64) -> u64 {
        let pause = draw(&classes[self.class as usize].pause, &mut self.random);
        (now + pause.max(1)).min(self.ends.max(now + 1))
    }
}

/// The hash of a client's 5-tuple, as the data path makes it.
fn hash(keys: &HashKeys, random: &mut Random) -> u64 {
    let word = random.word();
    let client = Address::v4(word as u32);
    let port = (word >> 32) as u16 | 1024;
    let flow = FlowKey {
        source: client,
        destination: Address::v4(u32::from_ne_bytes([203, 0, 113, 10])),
        ports: u32::from(port.to_be()) | u32::from(443_u16.to_be()) << 16,
        protocol: 6,
    };
    five_tuple(keys, &flow)
}

fn draw(spread: &Spread, random: &mut Random) -> u64 {
    let seconds = spread.median.seconds() * (spread.sigma * random.normal()).exp();
    (seconds.min(spread.most.seconds()) * SECOND as f64) as u64
}

/// A flood under way.
#[derive(Clone, Debug)]
pub struct Forger {
    kind: FloodKind,
    random: Random,
    pub ends: u64,
    pub pace: u64,
    /// Openers whose handshake has yet to be ended, and when.
    halves: VecDeque<(u64, u64)>,
}

impl Forger {
    pub fn new(flood: &Flood, seed: u64, number: u64, begin: u64) -> Self {
        Self {
            kind: flood.kind,
            random: Random::new(seed ^ 0xf100d, number),
            ends: begin + (flood.at.nanos() + flood.lasts.nanos()),
            pace: (SECOND as f64 / flood.rate) as u64,
            halves: VecDeque::new(),
        }
    }

    /// What is sent now.
    pub fn send(&mut self, keys: &HashKeys, now: u64, packets: &mut Vec<(u64, Kind)>) {
        packets.clear();
        while let Some((hash, _)) = self.halves.pop_front_if(|half| half.1 <= now) {
            packets.push((hash, Kind::Other));
        }
        let hash = hash(keys, &mut self.random);
        match self.kind {
            FloodKind::Syn => packets.push((hash, Kind::Open)),
            // What is not an opener and not an end is all the same to every design.
            FloodKind::Ack | FloodKind::SynAck => packets.push((hash, Kind::Other)),
            FloodKind::SynThenAck => {
                packets.push((hash, Kind::Open));
                self.halves.push_back((hash, now + HANDSHAKE));
            }
        }
    }
}
