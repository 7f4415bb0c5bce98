//! A bounded LRU of each CPU, in Katran's manner: every flow has an entry, whatever happens to the table.
//!
//! An opener does not look its flow up: it goes by the table, and overwrites what was remembered. Any other packet looks up, and
//! without an entry goes by the table, too, and is remembered. The oldest entry makes room. Kinder than the original in three
//! points: the order of use is exact, where the kernel's is approximate; a flow stays with its CPU; an entry whose backend is gone for
//! good is none. Katran stops remembering on a CPU that meets more than 125,000 openers a second: floods here stand for those below.

use std::collections::HashMap;

use lb_common::hash;
use lb_common::track::{Kind, Status};

use super::Balancer;
use crate::control::Pool;
use crate::scenario::Memory;

pub struct PerCpuLru {
    slots: Vec<u32>,
    statuses: Vec<Status>,
    cpus: Vec<Lru>,
}

impl PerCpuLru {
    pub fn new(memory: &Memory, pool: &Pool) -> Self {
        let each = memory.entries / memory.cpus;
        Self {
            slots: pool.slots.clone(),
            statuses: pool.statuses.clone(),
            cpus: (0..memory.cpus).map(|_| Lru::new(each as usize)).collect(),
        }
    }
}

impl Balancer for PerCpuLru {
    fn packet(&mut self, hash: u64, kind: Kind, _now: u64) -> Option<u32> {
        // Receive-side scaling, by bits that choose neither slot nor anything else here.
        let cpu = (hash >> 8 & 0xffff) as usize % self.cpus.len();
        let lru = &mut self.cpus[cpu];
        if kind != Kind::Open
            && let Some(backend) = lru.find(hash)
            && self.statuses[backend as usize] != Status::Gone
        {
            return Some(backend);
        }
        let backend = self.slots[hash::slot(hash, self.slots.len() as u32) as usize];
        lru.store(hash, backend);
        Some(backend)
    }

    fn change(&mut self, pool: &Pool, _now: u64) {
        self.slots.clone_from(&pool.slots);
        self.statuses.clone_from(&pool.statuses);
    }

    fn entries(&self) -> u64 {
        self.cpus.iter().map(|lru| lru.places.len() as u64).sum()
    }
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    backend: u32,
    newer: u32,
    older: u32,
}

/// Entries in the order of their use.
struct Lru {
    places: HashMap<u64, u32>,
    entries: Vec<Entry>,
    newest: u32,
    oldest: u32,
    most: usize,
}

impl Lru {
    fn new(most: usize) -> Self {
        Self {
            places: HashMap::with_capacity(most),
            entries: Vec::with_capacity(most),
            newest: NONE,
            oldest: NONE,
            most,
        }
    }

    fn find(&mut self, hash: u64) -> Option<u32> {
        let place = *self.places.get(&hash)?;
        self.unlink(place);
        self.link(place);
        Some(self.entries[place as usize].backend)
    }

    fn store(&mut self, hash: u64, backend: u32) {
        if self.find(hash).is_some() {
            self.entries[self.newest as usize].backend = backend;
            return;
        }
        let place = if self.entries.len() < self.most {
            self.entries.push(Entry {
                hash,
                backend,
                newer: NONE,
                older: NONE,
            });
            self.entries.len() as u32 - 1
        } else {
            let place = self.oldest;
            self.unlink(place);
            let entry = &mut self.entries[place as usize];
            self.places.remove(&entry.hash);
            (entry.hash, entry.backend) = (hash, backend);
            place
        };
        self.places.insert(hash, place);
        self.link(place);
    }

    fn unlink(&mut self, place: u32) {
        let Entry { newer, older, .. } = self.entries[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
    }

    fn link(&mut self, place: u32) {
        let older = self.newest;
        let entry = &mut self.entries[place as usize];
        (entry.newer, entry.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.entries[older as usize].newer = place,
        }
        self.newest = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut lru = Lru::new(3);
        for hash in 1..=3 {
            lru.store(hash, hash as u32 * 10);
        }
        assert_eq!(lru.find(1), Some(10));
        lru.store(4, 40);
        assert_eq!(lru.find(2), None);
        lru.store(3, 31);
        lru.store(5, 50);
        let found: Vec<_> = (1..=5).map(|hash| lru.find(hash)).collect();
        assert_eq!(found, [None, None, Some(31), Some(40), Some(50)]);
        assert_eq!(lru.places.len(), 3);
    }
}
