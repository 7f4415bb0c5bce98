//! A packet under way: the data path's own source, one access at a time.

use std::cell::Cell;

use lb_common::event::Event;
use lb_common::flow::{FlowEntry, FlowState, WAYS, tag};
use lb_common::reason::Reason;
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{FlowBucket, FlowMemory, Head, Kind, Place, Status, TableWord, choose};

use crate::mutation::Mutation;
use crate::world::{IDS, Life, Log, NOBODY, Turn, World};

/// What an onlooker notes of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    /// Whom the packet means by each id.
    meant: [Life; IDS],
    /// Backend and state of the flow's entry when it was last loaded.
    pub seen: Option<(u32, FlowState)>,
    /// What it stored for its flow: what stood there before, and what stands there now.
    pub stored: Option<(FlowEntry, FlowEntry)>,
    /// It found that the incumbent does not carry.
    pub incumbent_failed: bool,
    /// It found that the incumbent is DOWN, and may come back.
    pub incumbent_down: bool,
    /// It found a backend that is not ACTIVE.
    pub inactive: bool,
    /// It counted that it could not be pinned.
    pub unpinned: bool,
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub serial: u32,
    pub started: u64,
    /// Which flow's; none: a packet of a flood.
    pub flow: Option<usize>,
    pub forged: bool,
    /// The connection's backend did not carry when the packet was sent.
    pub homeless: bool,
    pub kind: Kind,
    pub hash: u64,
    pub service: u32,
    pub slot: u32,
    pub notes: Notes,
    log: Log,
}

/// Where it went.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub word: SlotWord,
    pub result: Result<u32, Reason>,
    pub life: Life,
}

impl Packet {
    pub fn new(
        world: &World,
        flow: Option<usize>,
        forged: bool,
        kind: Kind,
        hash: u64,
        service: u32,
        mut log: Log,
    ) -> Self {
        log.0.clear();
        let table = World::table(service);
        world.serial.set(world.serial.get() + 1);
        Self {
            serial: world.serial.get(),
            started: world.clock.get(),
            flow,
            forged,
            homeless: false,
            kind,
            hash,
            service,
            slot: table.first_slot() + lb_common::hash::slot(hash, table.slots()),
            notes: Notes {
                meant: [NOBODY; IDS],
                seen: None,
                stored: None,
                incumbent_failed: false,
                incumbent_down: false,
                inactive: false,
                unpinned: false,
            },
            log,
        }
    }

    pub fn accesses(&self) -> usize {
        self.log.0.len()
    }

    pub fn into_log(self) -> Log {
        self.log
    }

    /// Runs it for at most `budget` further accesses.
    pub fn run(&mut self, world: &World, budget: u32) -> Option<Outcome> {
        let memory = PacketMemory {
            turn: Turn::new(world, &mut self.log, budget),
            slot: self.slot,
            hash: self.hash,
            service: self.service,
            kind: self.kind,
            word: Cell::new(SlotWord(0)),
            notes: Cell::new(self.notes),
            lies: Default::default(),
        };
        let (word, result) = memory.decide();
        let life = memory.deliver(result);
        self.notes = memory.notes.get();
        memory
            .turn
            .end(&mut self.log)
            .then_some(Outcome { word, result, life })
    }
}

struct PacketMemory<'w> {
    turn: Turn<'w>,
    slot: u32,
    hash: u64,
    service: u32,
    kind: Kind,
    word: Cell<SlotWord>,
    notes: Cell<Notes>,
    /// What a mutation says instead of what stands there: (said, true).
    lies: [Cell<(FlowEntry, FlowEntry)>; WAYS],
}

impl PacketMemory<'_> {
    fn note(&self, note: impl FnOnce(&mut Notes)) {
        let mut notes = self.notes.get();
        note(&mut notes);
        self.notes.set(notes);
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.turn.world.mutation == mutation
    }

    fn decide(&self) -> (SlotWord, Result<u32, Reason>) {
        let word = SlotWord(self.turn.access(|world| {
            let word = world.slot(self.slot);
            let (primary, incumbent) = world.slot_lives[self.slot as usize].get();
            self.note(|notes| {
                notes.meant[word.incumbent() as usize % IDS] = incumbent;
                notes.meant[word.primary() as usize % IDS] = primary;
            });
            word.0
        }));
        self.word.set(word);
        if word.mode() == Mode::Steady || self.turn.starved() {
            return (word, Ok(word.primary()));
        }
        let shown = match (self.turn.world.mutation, word.mode()) {
            (Mutation::ResidueInserts, Mode::Residue) => {
                SlotWord::new(Mode::Learn, word.primary(), word.incumbent(), false)
            }
            (Mutation::SettlingIgnored, mode) => {
                SlotWord::new(mode, word.primary(), word.incumbent(), false)
            }
            _ => word,
        };
        let place = Place {
            hash: self.hash,
            service: self.service,
            flow_idle: World::table(self.service).flow_idle(),
            slot: self.slot,
            word: shown,
        };
        let kind = match (self.turn.world.mutation, self.kind) {
            (Mutation::EndIgnored, Kind::End) => Kind::Icmp,
            (_, kind) => kind,
        };
        let result = choose(self, &place, kind);
        let notes = self.notes.get();
        if self.mutated(Mutation::UnpinnedOpener)
            && self.kind == Kind::Open
            && notes.stored.is_none()
            && notes.seen.is_none()
        {
            return (word, Ok(word.primary()));
        }
        (word, result)
    }

    /// The packet goes out: the id is looked up once more, and somebody gets it.
    fn deliver(&self, result: Result<u32, Reason>) -> Life {
        let Ok(id) = result else { return NOBODY };
        self.turn.access(|world| {
            let id = id as usize % IDS;
            let life = world.life_of[id].get();
            world.promise(
                world.heads[id].get().is_some() && life != NOBODY,
                "I6",
                "a packet was sent to an id that names nothing",
            );
            world.promise(
                world.service_of[life as usize].get() == self.service,
                "I6",
                "a packet reached a backend of another service",
            );
            world.promise(
                self.notes.get().meant[id] == life,
                "I6",
                "a packet reached a backend that has the id of another",
            );
            u64::from(life)
        }) as Life
    }
}

struct Entries<'a> {
    memory: &'a PacketMemory<'a>,
    base: usize,
}

impl FlowMemory for PacketMemory<'_> {
    type Bucket<'a>
        = Entries<'a>
    where
        Self: 'a;

    fn clock(&self) -> u64 {
        self.turn.access(|world| world.clock.get())
    }

    fn flow_mask(&self) -> u32 {
        self.turn.world.buckets.get() - 1
    }

    fn flow_bucket(&self, index: u32) -> Option<Entries<'_>> {
        Some(Entries {
            memory: self,
            base: index as usize * WAYS,
        })
    }

    fn head(&self, backend: u32) -> Option<Head> {
        const PRESENT: u64 = 1 << 20;
        let word = self.turn.access(|world| {
            let head = world.head(backend);
            let status = head.map_or(Status::Gone, Head::status);
            self.note(|notes| {
                notes.inactive |= status != Status::Active;
                notes.incumbent_down |=
                    backend == self.word.get().incumbent() && status == Status::Down;
            });
            if backend == self.word.get().incumbent()
                && !head.is_some_and(|head| head.status().carries())
            {
                self.note(|notes| notes.incumbent_failed = true);
            }
            head.map_or(0, |head| head.0 | PRESENT)
        });
        if word == 0 {
            return None;
        }
        let head = Head(word & !PRESENT);
        let service = if self.mutated(Mutation::NoOwnerCheck) {
            self.service
        } else {
            head.service()
        };
        let status = match (self.turn.world.mutation, head.status()) {
            (Mutation::DownIsForgotten, Status::Down) => Status::Gone,
            (Mutation::RepinsActive, Status::Active) if self.kind == Kind::Open => Status::Draining,
            (_, status) => status,
        };
        Some(Head::new(service, status, head.route()))
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        let word = self.turn.access(|world| {
            world
                .head(backend)
                .map_or(0, |head| World::table(head.service()).0)
        });
        (word != 0).then_some(TableWord(word))
    }

    fn stamp_loss(&self, slot: u32, at: u64) {
        match self.turn.world.mutation {
            Mutation::NoLossStamp => {}
            _ => {
                self.turn.access(|world| {
                    world.loss[slot as usize % world.loss.len()].set(at);
                    1
                });
            }
        }
    }

    /// No access: a CPU's counters are its own.
    fn count_event(&self, event: Event) {
        self.note(|notes| notes.unpinned |= event == Event::PinFailed);
    }
}

impl FlowBucket for Entries<'_> {
    fn load(&self, way: usize) -> FlowEntry {
        let memory = self.memory;
        let entry = FlowEntry(memory.turn.access(|world| {
            let entry = world.entries[self.base + way].get();
            if entry.tag() == tag(memory.hash) && !entry.is_empty() {
                memory.note(|notes| {
                    notes.meant[entry.backend() as usize % IDS] =
                        world.entry_life[self.base + way].get();
                    if world
                        .head(entry.backend())
                        .is_some_and(|head| head.service() == memory.service)
                        && world.place(entry).is_some()
                    {
                        notes.seen = Some((entry.backend(), entry.state()));
                    }
                });
            }
            entry.0
        }));
        if memory.mutated(Mutation::EvictsEstablished)
            && entry.tag() != tag(memory.hash)
            && !entry.is_empty()
            && entry.state() == FlowState::Established
        {
            let said = entry.with(FlowState::Learnt, entry.age());
            memory.lies[way].set((said, entry));
            return said;
        }
        entry
    }

    fn swap(&self, way: usize, old: FlowEntry, new: FlowEntry) -> bool {
        let memory = self.memory;
        let (said, truth) = memory.lies[way].get();
        let old = if !old.is_empty() && said == old {
            truth
        } else {
            old
        };
        memory.turn.access(|world| {
            let cell = &world.entries[self.base + way];
            let stands = cell.get();
            if stands != old && !memory.mutated(Mutation::PlainStore) {
                return 0;
            }
            let word = memory.word.get();
            judge(world, memory, stands, new, word);
            cell.set(new);
            let meant = memory.notes.get().meant[new.backend() as usize % IDS];
            world.entry_life[self.base + way].set(meant);
            memory.note(|notes| notes.stored = Some((stands, new)));
            1
        }) != 0
    }
}

/// I3 and I5 at the moment of a packet's store.
fn judge(world: &World, memory: &PacketMemory<'_>, old: FlowEntry, new: FlowEntry, word: SlotWord) {
    let own = !old.is_empty() && old.tag() == new.tag();
    world.promise(
        own || word.mode() == Mode::Learn,
        "I3",
        "a packet inserted an entry into a slot that does not learn",
    );
    if old.is_empty() || old.state() != FlowState::Established || world.place(old).is_none() {
        return;
    }
    let owner = world
        .head(old.backend())
        .is_some_and(|head| head.service() == memory.service);
    world.promise(
        own && owner,
        "I5",
        "a live established entry was given up for another flow",
    );
    world.promise(
        old.backend() == new.backend()
            || (memory.kind == Kind::Open && new.backend() == word.primary()),
        "I5",
        "a live established entry changed its backend without a re-pin",
    );
}
