//! Clients, as the two ends of a connection see it: where it lives, and whether its packets get there.

use lb_common::flow::{Age, CLOSED_REST, FlowState};
use lb_common::slot::Mode;
use lb_common::track::{Kind, Status};
use lb_userspace::tracking::{MARGIN, SECOND};

use crate::packet::{Outcome, Packet};
use crate::world::{IDLE, Life, NOBODY, TICK, World};

/// Why a connection may break: DESIGN 4.5, and what the model added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    Down,
    Gone,
    Idle,
    ForgedOpener,
    ForgedOpenerIdle,
    ForgedEnd,
    HalfClosed,
    UnlearntEnd,
    NoOpener,
    UnpinnedWhileDown,
}

impl Cause {
    pub const ALL: [Self; 10] = [
        Self::Down,
        Self::Gone,
        Self::Idle,
        Self::ForgedOpener,
        Self::ForgedOpenerIdle,
        Self::ForgedEnd,
        Self::HalfClosed,
        Self::UnlearntEnd,
        Self::NoOpener,
        Self::UnpinnedWhileDown,
    ];

    pub const fn what(self) -> &'static str {
        match self {
            Self::Down => "its backend was DOWN when it sent",
            Self::Gone => "its backend was GONE",
            Self::Idle => "idle longer than flow_idle - 8 s",
            Self::ForgedOpener => "SYN forged while it was not learnt",
            Self::ForgedOpenerIdle => "SYN forged while its backend took no new flows",
            Self::ForgedEnd => "FIN forged, then silent for 8 s or more",
            Self::HalfClosed => "half closed, then silent for 8 s or more",
            Self::UnlearntEnd => {
                "half closed by its first packet after a change, and its slot settled before the next"
            }
            Self::NoOpener => {
                "UDP, begun unlearnt: while a backend of it was DOWN, or as its slot settled"
            }
            Self::UnpinnedWhileDown => "opened without a pin while the incumbent was DOWN",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No connection.
    Idle,
    /// An opener reached the backend; the client will go on within seconds, or give up.
    Opening,
    Open,
    /// The client has sent FIN.
    Closing,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub service: u32,
    pub hash: u64,
    pub slot: u32,
    pub udp: bool,
    pub phase: Phase,
    pub home: Life,
    /// When its last packet was delivered, and by the count of accesses.
    pub last: u64,
    last_serial: u32,
    pub in_flight: u8,
    /// In flight and not forged: the client's own.
    pub own: u8,
    causes: u16,
    fin_forged: bool,
    /// When a forged opener last arrived, by the count of accesses.
    forged_opener: u32,
    /// When a forged FIN was last stored.
    forged_end: u32,
    /// Its FIN or RST was seen by its entry, and nothing came after.
    ended: bool,
}

/// Broken connections by cause.
pub type Counts = [u64; Cause::ALL.len()];

impl Flow {
    pub fn new(service: u32, hash: u64, udp: bool) -> Self {
        let table = World::table(service);
        Self {
            service,
            hash,
            slot: table.first_slot() + lb_common::hash::slot(hash, table.slots()),
            udp,
            phase: Phase::Idle,
            home: NOBODY,
            last: 0,
            last_serial: 0,
            in_flight: 0,
            own: 0,
            causes: 0,
            fin_forged: false,
            forged_opener: 0,
            forged_end: 0,
            ended: false,
        }
    }

    pub fn connected(&self) -> bool {
        self.phase != Phase::Idle
    }

    pub fn may_break_by(&mut self, cause: Cause) {
        self.causes |= cause.bit();
    }

    /// Notes what excuses a break from now on.
    pub fn age(&mut self, world: &World) {
        if !self.connected() {
            return;
        }
        let silent = world.clock.get() - self.last;
        match self.phase {
            // A client that has not heard for so long sends its opener again: nothing lives that could break.
            Phase::Opening if silent > MARGIN => {
                self.phase = Phase::Idle;
                return;
            }
            Phase::Closing if silent + TICK >= MARGIN => self.may_break_by(Cause::HalfClosed),
            _ => {}
        }
        if silent > IDLE - MARGIN {
            self.may_break_by(Cause::Idle);
        }
        if self.fin_forged && silent + TICK >= MARGIN {
            self.may_break_by(Cause::ForgedEnd);
        }
    }

    /// The connection is no more, for a reason that the documentation names.
    fn lost(&mut self, cause: Cause, counts: &mut Counts) {
        counts[cause as usize] += 1;
        self.phase = Phase::Idle;
        self.causes = 0;
    }

    /// A packet of it (or, forged, with its addresses) has come to its end.
    pub fn delivered(
        &mut self,
        world: &World,
        packet: &Packet,
        outcome: &Outcome,
        counts: &mut Counts,
    ) {
        self.in_flight -= 1;
        if packet.forged {
            if packet.kind == Kind::Open {
                self.forged_opener = world.serial.get();
            }
            return;
        }
        self.own -= 1;
        // What comes after FIN may have opened its entry again.
        self.ended &= packet.kind != Kind::Other;
        match packet.kind {
            Kind::Open => self.opened(world, packet, outcome),
            _ if self.udp && self.phase == Phase::Idle => self.opened(world, packet, outcome),
            _ if self.connected() => self.followed(world, packet, outcome, counts),
            _ => {}
        }
    }

    /// A forged packet of it has come some way: what it stored may break the connection.
    pub fn forged(&mut self, world: &World, packet: &Packet) {
        if let Some((old, new)) = packet.notes.stored {
            let own = old.tag() == new.tag()
                && world
                    .head(old.backend())
                    .is_some_and(|head| head.service() == packet.service);
            match packet.kind {
                // Or learnt since the forged packet looked: then it may take the fresh entry as the one to give up.
                Kind::Open
                    if !own
                        || (old.state() == FlowState::Learnt
                            && new.age().since(old.age()) <= 1) =>
                {
                    self.may_break_by(Cause::ForgedOpener);
                }
                Kind::Open if old.backend() != new.backend() && packet.notes.inactive => {
                    self.may_break_by(Cause::ForgedOpenerIdle);
                }
                _ => {}
            }
            self.ended &= packet.kind == Kind::End;
            if packet.kind == Kind::End {
                self.fin_forged = true;
                self.forged_end = world.serial.get();
            }
        }
    }

    /// A new connection: it lives where its opener went.
    fn opened(&mut self, world: &World, packet: &Packet, outcome: &Outcome) {
        let word = outcome.word;
        let went = outcome.life;
        if let (true, Ok(id)) = (self.ended && packet.kind == Kind::Open, outcome.result) {
            let lingers = matches!(
                packet.notes.seen,
                Some((_, FlowState::Established | FlowState::Learnt))
            );
            world.promise(
                !lingers || id == word.primary() || world.status(id) == Status::Active,
                "I4",
                "a new connection after FIN went to a backend that takes no new flows",
            );
        }
        self.ended = false;
        self.fin_forged = self.forged_end >= packet.serial;
        self.causes = 0;
        self.home = went;
        self.last = packet.started;
        self.last_serial = packet.serial;
        let stopped = world.stopped[went as usize].get() >= packet.serial;
        self.phase = if went == NOBODY || !world.status_of(went).carries() || stopped {
            Phase::Idle
        } else if self.udp {
            Phase::Open
        } else {
            Phase::Opening
        };
        // Two openers of one flow at the same moment may both be pinned, to the primaries before and after a change.
        let rivals = self.forged_opener > 0 && world.rivals(self.hash, self.service);
        if self.in_flight > 0 || self.forged_opener >= packet.serial || rivals {
            self.may_break_by(Cause::ForgedOpener);
        }
        let unremembered = word.mode() == Mode::Learn
            && packet.notes.stored.is_none()
            && outcome.result == Ok(word.primary())
            && word.primary() != word.incumbent()
            && packet.notes.seen.is_none();
        // It may have been DOWN and have come to its end while the packet was in flight, across two changes.
        let down = packet.notes.incumbent_down
            || (packet.notes.incumbent_failed && world.slot(self.slot) != word);
        if unremembered && down {
            self.may_break_by(if self.udp {
                Cause::NoOpener
            } else {
                Cause::UnpinnedWhileDown
            });
        }
        // What it was before is not forgotten while that backend is DOWN, and no opener says that it is another flow now.
        let elsewhere = |(id, _)| outcome.result != Ok(id);
        if self.udp && packet.notes.seen.is_some_and(elsewhere) {
            self.may_break_by(Cause::NoOpener);
        }
    }

    /// A packet of a living connection.
    fn followed(&mut self, world: &World, packet: &Packet, outcome: &Outcome, counts: &mut Counts) {
        let status = world.status_of(self.home);
        let stopped = world.stopped[self.home as usize].get();
        if outcome.life != self.home {
            let was_down = stopped > self.last_serial;
            if status == Status::Gone {
                self.lost(Cause::Gone, counts);
            } else if packet.homeless || !status.carries() || stopped >= packet.serial {
                if packet.kind != Kind::Icmp {
                    self.lost(Cause::Down, counts);
                }
            } else if let Some(cause) = Cause::ALL
                .into_iter()
                .find(|cause| self.causes & cause.bit() != 0)
            {
                self.lost(cause, counts);
            } else {
                let (name, what) = if was_down {
                    (
                        "I7",
                        "a flow that was silent while its backend was DOWN lost it",
                    )
                } else {
                    (
                        "I1",
                        "a packet of a live connection went to another backend",
                    )
                };
                world.promise(false, name, what);
            }
            return;
        }
        if packet.kind == Kind::Icmp {
            return;
        }
        // It went to its home all the same, as the primary, but was not noted.
        if packet.homeless || !status.carries() || stopped >= packet.serial {
            self.may_break_by(Cause::Down);
        }
        let silent = Age::of(packet.started).since(Age::of(self.last));
        // It is remembered again, as a live one: arriving at its home by chance is not enough, nor is a packet that was in flight
        // beside others.
        let alone = self.in_flight == 0
            && packet.kind == Kind::Other
            && status.carries()
            && !packet.homeless;
        if alone && self.would_go(world) == self.home {
            self.causes &= !(Cause::UnlearntEnd.bit() | Cause::Down.bit());
            let stored = packet.notes.stored;
            let reopened = stored.is_some_and(|(_, new)| new.state() != FlowState::Closed);
            if reopened && packet.serial > self.forged_end {
                self.fin_forged = false;
                self.causes &= !Cause::ForgedEnd.bit();
            }
            if silent > CLOSED_REST {
                self.causes &= !Cause::Idle.bit();
            }
        }
        if packet.kind == Kind::End && packet.notes.seen.is_none() {
            self.may_break_by(Cause::UnlearntEnd);
        }
        let overtaken = self.last_serial > packet.serial || self.forged_opener > packet.serial;
        self.last = self.last.max(packet.started);
        self.last_serial = self.last_serial.max(packet.serial);
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
        }
        self.ended = packet.kind == Kind::End
            && self.in_flight == 0
            && !overtaken
            && !packet.homeless
            && status.carries()
            && packet.notes.seen.is_some()
            // Two first packets at the same moment may leave two entries; FIN closes one, the other dies of age.
            && world.entries_of(self.hash, self.service).count() == 1
            && outcome.word.mode() != Mode::Steady;
    }

    /// Whom its next packet means, were every backend up.
    fn would_go(&self, world: &World) -> Life {
        let (primary, incumbent) = world.slot_lives[self.slot as usize].get();
        if world.slot(self.slot).mode() == Mode::Steady {
            return primary;
        }
        world
            .find(self.hash, self.service)
            .map_or(incumbent, |(_, life)| life)
    }

    /// Where its next packet would go, without sending one: I1, I2, I3 and I7 at every moment.
    pub fn foretell(&self, world: &World) {
        if !self.connected() || self.in_flight > 0 || self.causes != 0 {
            return;
        }
        let status = world.status_of(self.home);
        if status == Status::Gone {
            return;
        }
        let word = world.slot(self.slot);
        let (primary, incumbent) = world.slot_lives[self.slot as usize].get();
        let was_down =
            !status.carries() || world.stopped[self.home as usize].get() > self.last_serial;
        if word.mode() == Mode::Steady {
            world.promise(
                primary == self.home,
                if was_down { "I7" } else { "I3" },
                "a slot at rest is not where a live flow of it is",
            );
            return;
        }
        match world.find(self.hash, self.service) {
            Some((_, life)) => world.promise(
                life == self.home,
                if was_down { "I7" } else { "I5" },
                "the entry of a live flow names another backend than its own",
            ),
            // Between a status and its slots: an incumbent that is GONE gets nothing any more.
            None => world.promise(
                match world.status_of(incumbent) {
                    Status::Gone => primary == self.home,
                    _ => incumbent == self.home,
                },
                if was_down { "I7" } else { "I2" },
                "a live flow without an entry is not on its slot's incumbent",
            ),
        }
    }
}

/// Longest silence that keeps a flow live.
pub const LIVE: u64 = IDLE - MARGIN - SECOND;
