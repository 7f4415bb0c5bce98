//! The maps of one loaded program, mapped; what each must be like to be ours; what of an older set goes into a newer one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Map, MapData, MapType};
use lb_common::abi::{
    Backend, BackendCounters, FlowLine, Identity, Route, ServiceBucket, ServiceEntry, control,
    names,
};
use lb_common::event::EVENTS;
use lb_common::flow::WAYS;
use lb_common::reason::REASONS;
use lb_common::service::{Directory, Service};
use lb_common::slot::SlotWord;
use lb_common::track::Head;

use super::found::Found;
use super::mapped::Mapped;
use crate::model::Capacity;

/// How many maps are pinned.
const PINNED: usize = 11;

/// Entries of the maps of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub cpus: u32,
    /// Buckets of one half of the service table.
    pub service_buckets: u32,
    pub slots: u32,
    pub flow_buckets: u32,
    /// Records: ids begin at 1.
    pub backends: u32,
}

impl Sizes {
    pub fn of(capacity: &Capacity) -> Result<Self> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| anyhow!("number of CPUs from {what}: {error}"))?;
        Ok(Self {
            cpus: cpus as u32,
            // Sixteen for each entry (a service, a VIP's note), so that a seed without overflow is found within a few tries: one
            // bucket in 25,000 would hold three.
            service_buckets: capacity.services.max(16).next_power_of_two() * 32,
            slots: capacity.slots,
            // A power of two that holds at least the entries asked for.
            flow_buckets: capacity.flows.div_ceil(WAYS as u32).next_power_of_two(),
            backends: capacity.backends + 1,
        })
    }

    /// Entries of each pinned map.
    pub const fn entries(&self) -> [(&'static str, u32); PINNED] {
        [
            (names::SERVICES, 2 * self.service_buckets),
            (names::SLOTS, self.slots),
            (names::LOSSES, self.slots),
            (names::FLOWS, self.flow_buckets),
            (names::BACKENDS, self.backends),
            (names::IDENTITIES, self.backends),
            (names::CONTROL, control::WORDS),
            (names::BACKEND_COUNTERS, self.cpus * self.backends),
            (names::REASON_COUNTERS, self.cpus * REASONS),
            (names::EVENT_COUNTERS, self.cpus * EVENTS),
            (names::EGRESS, EGRESS_ENTRIES),
        ]
    }
}

/// As the object says; not for the loader to choose.
const EGRESS_ENTRIES: u32 = 64;

/// All that packets and the daemon share, but for the device map.
pub struct Tables {
    pub services: Mapped<ServiceBucket>,
    pub slots: Mapped<SlotWord>,
    pub losses: Mapped<u64>,
    pub flows: Mapped<FlowLine>,
    pub backends: Mapped<Backend>,
    pub identities: Mapped<Identity>,
    pub control: Mapped<u64>,
    pub backend_counters: Mapped<BackendCounters>,
    pub reason_counters: Mapped<u64>,
    pub event_counters: Mapped<u64>,
}

impl Tables {
    pub fn map(mut get: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            services: Mapped::new(get(names::SERVICES)?, names::SERVICES)?,
            slots: Mapped::new(get(names::SLOTS)?, names::SLOTS)?,
            losses: Mapped::new(get(names::LOSSES)?, names::LOSSES)?,
            flows: Mapped::new(get(names::FLOWS)?, names::FLOWS)?,
            backends: Mapped::new(get(names::BACKENDS)?, names::BACKENDS)?,
            identities: Mapped::new(get(names::IDENTITIES)?, names::IDENTITIES)?,
            control: Mapped::new(get(names::CONTROL)?, names::CONTROL)?,
            backend_counters: Mapped::new(get(names::BACKEND_COUNTERS)?, names::BACKEND_COUNTERS)?,
            reason_counters: Mapped::new(get(names::REASON_COUNTERS)?, names::REASON_COUNTERS)?,
            event_counters: Mapped::new(get(names::EVENT_COUNTERS)?, names::EVENT_COUNTERS)?,
        })
    }

    /// The service table that packets are led by.
    fn entries_in_force(&self) -> impl Iterator<Item = ServiceEntry> + '_ {
        let half = Directory(self.control.load(control::SERVICE_TABLE, 0)).half();
        let buckets = self.services.entries() / 2;
        (half * buckets..(half + 1) * buckets)
            .map(|i| {
                ServiceBucket::from_words(std::array::from_fn(|word| self.services.load(i, word)))
            })
            .flat_map(|bucket| bucket.ways)
            .filter(|entry| entry.tuple().is_some())
    }

    /// Lets every record say where its service's table is. A plan that broke off writes records of a table that is not in force yet:
    /// by them the service's flow entries would be looked for in slots that nothing leads to, and taken for useless.
    pub fn mend_records(&self) {
        let words: HashMap<u32, u64> = self
            .entries_in_force()
            .filter(|entry| entry.tuple().is_some_and(|tuple| tuple.protocol != 0))
            .map(|entry| (Service::from(&entry).number, entry.table))
            .collect();
        for id in 1..self.backends.entries() {
            let service = Head(self.backends.load(id, 0)).service();
            // Of a service that is not in force nobody needs an entry: no table.
            let word = words.get(&service).copied().unwrap_or_default();
            if service != 0 && self.backends.load(id, Backend::TABLE_WORD) != word {
                self.backends.store(id, Backend::TABLE_WORD, word);
            }
        }
    }

    /// What a daemon that comes to these tables has to know.
    pub fn found(&self) -> Found {
        let route = |id, route| {
            let first = Backend::route_word(route);
            Route::from_words(std::array::from_fn(|i| self.backends.load(id, first + i)))
        };
        let record = |id| {
            let backend = Backend {
                head: self.backends.load(id, 0),
                routes: [route(id, 0), route(id, 1)],
                table: self.backends.load(id, Backend::TABLE_WORD),
            };
            let words = std::array::from_fn(|word| self.identities.load(id, word));
            (backend, Identity::from_words(words))
        };
        let entries = self.entries_in_force().collect();
        Found::read(entries, self.backends.entries(), record, |slot| {
            // One out of range is for the caller to find: the service's range is in `entries`.
            if slot < self.slots.entries() {
                SlotWord(self.slots.load(slot, 0))
            } else {
                SlotWord::default()
            }
        })
    }

    /// Takes over everything but the service table from tables of another size. What did not fit was refused before.
    pub fn copy_from(&self, old: &Self, cpus: u32) {
        self.slots.copy_from(&old.slots, 0, 0);
        self.backends.copy_from(&old.backends, 0, 0);
        self.identities.copy_from(&old.identities, 0, 0);
        for cpu in 0..cpus {
            let (from, to) = (cpu * old.backends.entries(), cpu * self.backends.entries());
            let ids = old.backends.entries().min(self.backends.entries());
            self.backend_counters
                .copy_range(&old.backend_counters, from, to, ids);
        }
        // A version with other reasons, or events, counts them from zero.
        for (mine, theirs) in [
            (&self.reason_counters, &old.reason_counters),
            (&self.event_counters, &old.event_counters),
        ] {
            if mine.entries() == theirs.entries() {
                mine.copy_from(theirs, 0, 0);
            }
        }
    }
}

/// A set of maps that was found pinned, and may be carried on with.
pub struct Set {
    directory: PathBuf,
    pub tables: Tables,
    /// Names of maps that have the size this node wants.
    fitting: Vec<&'static str>,
    pub found: Found,
    /// Interfaces that packets are redirected to.
    pub egress: Vec<u32>,
}

impl Set {
    /// Opens a set.
    ///
    /// # Errors
    /// When something in it is not what this layout says. Nothing has been changed.
    pub fn open(directory: &Path, sizes: &Sizes) -> Result<Self> {
        let foreign = |what: &str| {
            anyhow!(
                "{}: {what}: this is no set of maps that a Sluice of this version left, so nothing is touched. If the data path is \
                 to be made anew (packets are not balanced meanwhile, and connections in change are reset): `sluice detach`, \
                 then start again",
                directory.display()
            )
        };
        let mut fitting = Vec::new();
        for (name, entries) in sizes.entries() {
            let map = MapData::from_pin(directory.join(name))
                .map_err(|error| foreign(&format!("map {name} cannot be opened ({error})")))?;
            let info = map.info().with_context(|| format!("map {name}"))?;
            let shape = Shape::of(name);
            let have = Shape {
                kind: info.map_type().ok(),
                key: info.key_size(),
                value: info.value_size(),
                mmapable: info.map_flags() & MMAPABLE != 0,
            };
            if have != shape {
                return Err(foreign(&format!("map {name} is {have}, not {shape}")));
            }
            if info.max_entries() == entries {
                fitting.push(name);
            }
        }
        let tables = Tables::map(|name| {
            let map = MapData::from_pin(directory.join(name))?;
            Ok(Map::Array(map))
        })?;
        let egress = MapData::from_pin(directory.join(names::EGRESS))?;
        let egress = DevMapHash::try_from(Map::DevMapHash(egress))?;
        Ok(Self {
            egress: egress.keys().collect::<Result<_, _>>()?,
            found: tables.found(),
            directory: directory.to_owned(),
            tables,
            fitting,
        })
    }

    /// Whether every map has the size this node wants.
    pub fn fits(&self) -> bool {
        self.fitting.len() == PINNED
    }

    /// The pin of a map that can be shared with the older program.
    pub fn pin(&self, name: &str) -> Option<PathBuf> {
        let fits = self.fits() || (name == names::FLOWS && self.fitting.contains(&name));
        fits.then(|| self.directory.join(name))
    }

    /// # Errors
    /// When another seed was used: every flow would have another slot and another tag.
    pub fn require_seed(&self, fingerprint: u64) -> Result<()> {
        let theirs = self.tables.control.load(control::HASH, 0);
        ensure!(
            theirs == fingerprint,
            "the data path in force hashes with another seed than node.hash_seed (or the one kept in node.state) says, so every \
             connection would move. Put the seed back; or, to change it and reset connections: `sluice detach`, then start again"
        );
        Ok(())
    }

    /// # Errors
    /// When the flow table is to have another size while it remembers flows.
    pub fn require_flow_table(&self, sizes: &Sizes) -> Result<()> {
        let have = u64::from(self.tables.flows.entries()) * WAYS as u64;
        ensure!(
            self.fitting.contains(&names::FLOWS) || self.found.in_change == 0,
            "capacity.flows asks for a flow table of {} entries; the one in force has {have}, and what it remembers of the flows of \
             {} slots would be lost. Put capacity.flows back to {have} until `sluice status` says that all slots are steady; or \
             forget them: `sluice detach`, then start again",
            u64::from(sizes.flow_buckets) * WAYS as u64,
            self.found.in_change
        );
        Ok(())
    }
}

/// BPF_F_MMAPABLE of linux/bpf.h.
const MMAPABLE: u32 = 1 << 10;

/// What a map is, but for its size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    kind: Option<MapType>,
    key: u32,
    value: u32,
    mmapable: bool,
}

impl Shape {
    fn of(name: &str) -> Self {
        let value = match name {
            names::SERVICES => size_of::<ServiceBucket>(),
            names::SLOTS => size_of::<SlotWord>(),
            names::FLOWS => size_of::<FlowLine>(),
            names::BACKENDS => size_of::<Backend>(),
            names::IDENTITIES => size_of::<Identity>(),
            names::BACKEND_COUNTERS => size_of::<BackendCounters>(),
            // LOSSES, CONTROL, REASON_COUNTERS, EVENT_COUNTERS: words; EGRESS: struct bpf_devmap_val.
            _ => 8,
        };
        let devices = name == names::EGRESS;
        Self {
            kind: Some(if devices {
                MapType::DevMapHash
            } else {
                MapType::Array
            }),
            key: 4,
            value: value as u32,
            mmapable: !devices,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self
            .kind
            .map_or_else(|| "of an unknown type".to_owned(), |k| format!("{k:?}"));
        let Self { key, value, .. } = self;
        let mapped = if self.mmapable { ", mmapable" } else { "" };
        write!(
            f,
            "{kind} with keys of {key} and values of {value} bytes{mapped}"
        )
    }
}
