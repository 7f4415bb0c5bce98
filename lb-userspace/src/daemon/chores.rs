//! The regular chores of connection tracking: sweep, settle. At rest there are none.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::owner::Owner;
use crate::model::Protocol;
use crate::tracking::SECOND;
use crate::tracking::settle::Scope;

/// Between two walks over the flow table.
pub const SWEEP: Duration = Duration::from_secs(4);

/// How long a flow may be silent, nanoseconds: the window that a slot learns for.
const fn window(protocol: Protocol) -> u64 {
    crate::plan::flow_idle_seconds(protocol) * SECOND
}

impl Owner {
    /// Walks over the flow table, if some slot is not at rest and it is time.
    pub(super) fn chores(&mut self) -> Result<()> {
        let now = Instant::now();
        if !self.restless || now < self.next_sweep {
            return Ok(());
        }
        self.next_sweep = now + SWEEP;
        let scope = |(key, service): (
            &crate::model::ServiceKey,
            &std::sync::Arc<crate::plan::InstalledService>,
        )| Scope {
            slots: service.first_slot..service.first_slot + service.size,
            tracking: service.tracking,
            window: window(key.protocol),
        };
        let scopes: Vec<_> = self.installed.services.iter().map(scope).collect();
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
