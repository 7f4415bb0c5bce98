//! The regular chores of connection tracking: sweep, settle. At rest there are none.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::owner::Owner;
use crate::plan::{self, InstalledService};
use crate::tracking::settle::Scope;

/// Between two walks over the flow table.
pub const SWEEP: Duration = Duration::from_secs(4);

impl Owner {
    /// Walks over the flow table, if some slot is not at rest and it is time.
    pub(super) fn chores(&mut self) -> Result<()> {
        let now = Instant::now();
        if !self.restless || now < self.next_sweep {
            return Ok(());
        }
        self.next_sweep = now + SWEEP;
        let scope = |service: &std::sync::Arc<InstalledService>| Scope {
            slots: service.first_slot..service.first_slot + service.size,
            tracking: service.tracking,
            window: plan::window(service.flow_idle),
        };
        let scopes: Vec<_> = self.installed.services.values().map(scope).collect();
        // Grace periods block this thread for some milliseconds.
        self.tally = tokio::task::block_in_place(|| self.plane.maintain(&scopes))?;
        self.sweeps += 1;
        let changing = scopes.iter().any(|scope| {
            let size = scope.slots.end - scope.slots.start;
            let [steady, ..] = self.plane.modes(scope.slots.start, size);
            steady != u64::from(size)
        });
        self.restless = changing || self.tally.states.iter().any(|count| *count > 0);
        Ok(())
    }
}
