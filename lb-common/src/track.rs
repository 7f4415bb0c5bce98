//! Connections survive change: which backend a packet of a slot that is not at rest goes to, and what is remembered of it.
//!
//! A slot at rest (STEADY) reads and writes nothing here. Around a change (LEARN) the flows of the slot are remembered: openers are
//! pinned to the new backend P, others learnt with the old one, the incumbent I. Once every live flow is remembered, the daemon
//! makes P the incumbent (RESIDUE): the entries that name other backends go on being followed until they are gone.
//!
//! Pure but for [`FlowMemory`], each call of which is one access to memory that other CPUs and the daemon share.

use crate::event::Event;
use crate::flow::{
    Age, CLOSED_REST, FlowEntry, FlowState, REOPEN, SYN_REST, WAYS, bucket, slot_of_tag, tag,
};
use crate::reason::Reason;
use crate::slot::{Mode, SlotWord};

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// SYN without ACK.
    Open = 0,
    /// FIN or RST.
    End = 1,
    Other = 2,
    /// An ICMP error that quotes the flow: follows it, and leaves no trace.
    Icmp = 3,
}

/// What a backend may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Gets nothing; what named it is forgotten.
    Gone = 0,
    /// Gets new flows and keeps its own.
    Active = 1,
    /// Keeps its own.
    Draining = 2,
    /// Its probes fail, but not for long: keeps its own.
    Suspect = 3,
    /// Its flows go elsewhere, but are not forgotten yet.
    Down = 4,
}

impl Status {
    /// May carry existing flows.
    #[inline(always)]
    pub const fn carries(self) -> bool {
        matches!(self, Self::Active | Self::Draining | Self::Suspect)
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::Active,
            2 => Self::Draining,
            3 => Self::Suspect,
            4 => Self::Down,
            _ => Self::Gone,
        }
    }
}

/// First word of a backend's record, loaded once: route in force, status, service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub u64);

impl Head {
    #[inline(always)]
    pub const fn new(service: u32, status: Status, route: usize) -> Self {
        Self(((service as u64) << 32) | ((status as u64) << 1) | (route as u64 & 1))
    }

    #[inline(always)]
    pub const fn service(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub const fn status(self) -> Status {
        Status::from_bits(self.0 >> 1)
    }

    #[inline(always)]
    pub const fn route(self) -> usize {
        (self.0 & 1) as usize
    }
}

/// A service's lookup table in one word: first slot, number of slots (17 bits), and how long its flows may be silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableWord(pub u64);

impl TableWord {
    /// `flow_idle` in units of [`Age`].
    #[inline(always)]
    pub const fn new(first_slot: u32, slots: u32, flow_idle: u16) -> Self {
        Self(
            first_slot as u64
                | ((slots as u64 & 0x1_ffff) << 32)
                | ((flow_idle as u64 & 0xfff) << 49),
        )
    }

    #[inline(always)]
    pub const fn first_slot(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn slots(self) -> u32 {
        (self.0 >> 32) as u32 & 0x1_ffff
    }

    #[inline(always)]
    pub const fn flow_idle(self) -> u16 {
        (self.0 >> 49) as u16 & 0xfff
    }
}

/// Eight entries that packets and the daemon share.
pub trait FlowBucket {
    /// One load.
    fn load(&self, way: usize) -> FlowEntry;
    /// Compare-and-swap: stores `new` if `old` still stands there.
    fn swap(&self, way: usize, old: FlowEntry, new: FlowEntry) -> bool;
}

/// The memory that tracking reads and writes; each method is one access.
pub trait FlowMemory {
    type Bucket<'a>: FlowBucket
    where
        Self: 'a;

    /// Coarse monotonic clock, nanoseconds.
    fn clock(&self) -> u64;
    fn flow_mask(&self) -> u32;
    fn flow_bucket(&self, index: u32) -> Option<Self::Bucket<'_>>;
    fn head(&self, backend: u32) -> Option<Head>;
    /// The table of the backend's service.
    fn table(&self, backend: u32) -> Option<TableWord>;
    /// Notes that a flow of this slot could not be remembered.
    fn stamp_loss(&self, slot: u32, at: u64);
    /// Counts what could not be done; a packet's own CPU alone writes its counters, and no rule reads them.
    fn count_event(&self, event: Event);
    // The kernel has these as functions of their own: its verifier then looks at each once, not at each of its uses.

    /// [`search`]
    #[inline(always)]
    fn search(&self, bucket: u32, tag: u32, service: u32, flow_idle: u16, now: Age) -> u32 {
        search(self, bucket, tag, service, flow_idle, now)
    }
    /// [`victim`]
    #[inline(always)]
    fn victim(&self, bucket: u32, now: Age) -> u32 {
        victim(self, bucket, now)
    }
    /// [`rank`]
    #[inline(always)]
    fn rank(&self, entry: FlowEntry, now: Age) -> u32 {
        rank(self, entry, now)
    }
}

/// A packet's place: its service, hash and slot.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub hash: u64,
    pub service: u32,
    pub flow_idle: u16,
    pub slot: u32,
    pub word: SlotWord,
}

/// Compare-and-swaps that a packet tries before it goes without.
const ATTEMPTS: usize = 4;

/// The backend for a packet of a slot that is not STEADY.
///
/// # Errors
/// `settling` for an opener that could not be pinned while its slot settles: its client will send it again.
#[inline(always)]
pub fn choose<M: FlowMemory>(memory: &M, place: &Place, kind: Kind) -> Result<u32, Reason> {
    let clock = memory.clock();
    let now = Age::of(clock);
    let word = place.word;
    let index = bucket(place.hash, memory.flow_mask());
    let Some(entries) = memory.flow_bucket(index) else {
        return Err(Reason::ServiceTable);
    };
    let tag = tag(place.hash);
    for attempt in 1..=ATTEMPTS {
        let answer = memory.search(index, tag, place.service, place.flow_idle, now);
        let mut follows = false;
        let decision = if answer == UNKNOWN {
            miss(memory, &entries, index, place, kind, now, clock)
        } else {
            let Some(found) = Found::again(&entries, answer, tag) else {
                continue;
            };
            follows = true;
            hit(&found, word, kind, now)
        };
        match decision {
            Decision::Go(backend) => return Ok(backend),
            Decision::Store { way, old, new } => {
                // An entry that stays with its backend is followed even if the note that it was seen gets lost.
                let follows = follows && old.backend() == new.backend();
                if entries.swap(way, old, new) || (follows && attempt == ATTEMPTS) {
                    return Ok(new.backend());
                }
            }
            Decision::Full => break,
        }
    }
    // Pin or default: an opener that is not remembered must go where a packet of an unknown flow goes.
    memory.stamp_loss(place.slot, clock);
    memory.count_event(if kind == Kind::Open {
        Event::PinFailed
    } else {
        Event::LearningLost
    });
    if kind == Kind::Open && word.settling() {
        return Err(Reason::Settling);
    }
    Ok(default(memory, word))
}

/// Where a packet of an unknown flow goes: I if it carries, else P.
#[inline(always)]
fn default<M: FlowMemory>(memory: &M, word: SlotWord) -> u32 {
    if word.mode() == Mode::Learn && carries(memory, word.incumbent()) {
        word.incumbent()
    } else {
        word.primary()
    }
}

#[inline(always)]
fn carries<M: FlowMemory>(memory: &M, backend: u32) -> bool {
    memory
        .head(backend)
        .is_some_and(|head| head.status().carries())
}

enum Decision {
    Go(u32),
    Store {
        way: usize,
        old: FlowEntry,
        new: FlowEntry,
    },
    /// Nothing can be stored.
    Full,
}

struct Found {
    way: usize,
    entry: FlowEntry,
    status: Status,
}

impl Found {
    /// What [`search`] found, if it still stands there.
    #[inline(always)]
    fn again<B: FlowBucket>(entries: &B, answer: u32, tag: u32) -> Option<Self> {
        let way = (answer & 7) as usize;
        let entry = entries.load(way);
        let same = !entry.is_empty() && entry.tag() == tag && entry.backend() == answer >> 6;
        same.then_some(Self {
            way,
            entry,
            status: Status::from_bits(u64::from(answer >> 3)),
        })
    }
}

/// What [`search`] says when a flow has no entry.
const UNKNOWN: u32 = u32::MAX;

/// The flow's entry: same tag, not over, its backend one of this service's that is not GONE. In one number: its way (3 bits), the
/// backend's status (3), the backend's id.
#[inline(always)]
pub fn search<M: FlowMemory + ?Sized>(
    memory: &M,
    bucket: u32,
    tag: u32,
    service: u32,
    flow_idle: u16,
    now: Age,
) -> u32 {
    let Some(entries) = memory.flow_bucket(bucket) else {
        return UNKNOWN;
    };
    for way in 0..WAYS {
        let entry = entries.load(way);
        if entry.is_empty() || entry.tag() != tag || entry.expired(now, flow_idle) {
            continue;
        }
        let Some(head) = memory.head(entry.backend()) else {
            continue;
        };
        if head.service() == service && head.status() != Status::Gone {
            return way as u32 | ((head.status() as u32) << 3) | (entry.backend() << 6);
        }
    }
    UNKNOWN
}

/// A packet of a remembered flow.
#[inline(always)]
fn hit(found: &Found, word: SlotWord, kind: Kind, now: Age) -> Decision {
    let Found { way, entry, status } = *found;
    let idle = now.since(entry.age());
    let state = entry.state();
    if kind == Kind::Icmp {
        return Decision::Go(if status.carries() {
            entry.backend()
        } else {
            word.primary()
        });
    }
    let again = matches!(state, FlowState::Syn | FlowState::Closed)
        || idle >= REOPEN
        || status == Status::Down;
    // Where P is the same backend nothing is to be moved, and an opener (perhaps forged) must not shorten an established flow's life.
    let elsewhere = entry.backend() != word.primary();
    if kind == Kind::Open && status != Status::Active && again && elsewhere {
        let new = FlowEntry::new(entry.tag(), word.primary(), FlowState::Syn, now);
        return Decision::Store {
            way,
            old: entry,
            new,
        };
    }
    if status == Status::Down {
        return Decision::Go(word.primary());
    }
    let next = match (kind, state) {
        (Kind::End, _) => FlowState::Closed,
        (Kind::Open, FlowState::Closed) => FlowState::Syn,
        (Kind::Other, FlowState::Syn) => FlowState::Established,
        (Kind::Other, FlowState::Closed) if idle >= CLOSED_REST => FlowState::Established,
        (Kind::Other, FlowState::Learnt) if word.mode() == Mode::Residue => FlowState::Established,
        _ => state,
    };
    if next == state && idle == 0 {
        return Decision::Go(entry.backend());
    }
    Decision::Store {
        way,
        old: entry,
        new: entry.with(next, now),
    }
}

/// A packet of a flow that is not remembered.
#[inline(always)]
fn miss<M: FlowMemory>(
    memory: &M,
    entries: &M::Bucket<'_>,
    index: u32,
    place: &Place,
    kind: Kind,
    now: Age,
    clock: u64,
) -> Decision {
    let word = place.word;
    if word.mode() != Mode::Learn {
        return Decision::Go(word.primary());
    }
    let incumbent = carries(memory, word.incumbent());
    let default = if incumbent {
        word.incumbent()
    } else {
        word.primary()
    };
    let (backend, state) = match kind {
        Kind::Icmp | Kind::End => return Decision::Go(default),
        Kind::Open => (word.primary(), FlowState::Syn),
        Kind::Other if !incumbent => return Decision::Go(default),
        Kind::Other if word.settling() => (default, FlowState::Established),
        Kind::Other => (default, FlowState::Learnt),
    };
    let way = memory.victim(index, now) as usize;
    if way >= WAYS {
        return Decision::Full;
    }
    // What stands there may have changed since: it is judged again, and the swap is only for what was judged.
    let old = entries.load(way);
    if !old.is_empty() && memory.rank(old, now) == NEVER {
        return Decision::Full;
    }
    if !old.is_empty() && old.state() == FlowState::Learnt {
        // Before the swap: the daemon must not believe for a moment that this flow is still remembered.
        if let Some(table) = memory.table(old.backend()) {
            memory.stamp_loss(
                table.first_slot() + slot_of_tag(old.tag(), table.slots()),
                clock,
            );
            memory.count_event(Event::LearningLost);
        }
    }
    Decision::Store {
        way,
        old,
        new: FlowEntry::new(tag(place.hash), backend, state, now),
    }
}

/// The way to give up ([`WAYS`]: none): an empty one, one whose time is over or whose backend is GONE, then closed, learnt and
/// unanswered ones, each after a rest. Never a live established flow.
#[inline(always)]
pub fn victim<M: FlowMemory + ?Sized>(memory: &M, bucket: u32, now: Age) -> u32 {
    let Some(entries) = memory.flow_bucket(bucket) else {
        return WAYS as u32;
    };
    let mut best = NEVER << 4 | WAYS as u32;
    for way in 0..WAYS {
        let entry = entries.load(way);
        if entry.is_empty() {
            return way as u32;
        }
        let candidate = (memory.rank(entry, now) << 4) | way as u32;
        if candidate < best && candidate >> 4 != NEVER {
            best = candidate;
        }
    }
    best & 0xf
}

/// The rank of what is never given up.
const NEVER: u32 = 15;

/// How readily an entry is given up; the smaller, the sooner.
#[inline(always)]
pub fn rank<M: FlowMemory + ?Sized>(memory: &M, entry: FlowEntry, now: Age) -> u32 {
    let gone = memory
        .head(entry.backend())
        .is_none_or(|head| head.status() == Status::Gone);
    let flow_idle = memory
        .table(entry.backend())
        .map_or(0, TableWord::flow_idle);
    let idle = now.since(entry.age());
    if gone || entry.expired(now, flow_idle) {
        return 1;
    }
    match entry.state() {
        FlowState::Closed if idle >= CLOSED_REST => 2,
        FlowState::Learnt => 3,
        FlowState::Syn if idle >= SYN_REST => 4,
        _ => NEVER,
    }
}
