//! Maglev alone: nothing is remembered, each packet goes where the table of the moment says.

use lb_common::hash;
use lb_common::track::Kind;

use super::Balancer;
use crate::control::Pool;

pub struct Stateless {
    slots: Vec<u32>,
}

impl Stateless {
    pub fn new(pool: &Pool) -> Self {
        Self {
            slots: pool.slots.clone(),
        }
    }
}

impl Balancer for Stateless {
    fn packet(&mut self, hash: u64, _kind: Kind, _now: u64) -> Option<u32> {
        Some(self.slots[hash::slot(hash, self.slots.len() as u32) as usize])
    }

    fn change(&mut self, pool: &Pool, _now: u64) {
        self.slots.clone_from(&pool.slots);
    }

    fn entries(&self) -> u64 {
        0
    }
}
