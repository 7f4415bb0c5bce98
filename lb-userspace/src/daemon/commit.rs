//! Changes that happen wholly or not at all: state, data plane, stored overlay.

use anyhow::Result;

use super::owner::Owner;
use crate::api::dto::Changed;
use crate::model::Config;
use crate::state::State;

impl Owner {
    /// Changes state by `change`, the data plane and the stored overlay with it; or none of them. `change` returns a sentence
    /// about what it did, and whether it did anything.
    pub(super) fn commit(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(String, bool)>,
    ) -> Result<Changed> {
        let before = self.state.clone();
        let config = self.config.clone();
        let mut applied = false;
        let result = change(self).and_then(|(message, changed)| {
            // A full disk shows here, before a slot has moved.
            let prepared =
                tokio::task::block_in_place(|| self.store.prepare(self.state.overlay()))?;
            self.watch();
            let moves = match self.apply() {
                Ok(moves) => moves,
                Err(error) => {
                    prepared.into_iter().for_each(|p| self.store.discard(p));
                    return Err(error);
                }
            };
            applied = true;
            if let Some(prepared) = prepared {
                tokio::task::block_in_place(|| self.store.commit(prepared))?;
            }
            Ok((message, changed, moves))
        });
        match result {
            Ok((message, changed, moves)) => Ok(Changed {
                message,
                changed,
                slots_moved: moves.moved,
                slots_moved_in_excess: moves.excess,
            }),
            Err(error) => {
                self.roll_back(before, config, applied);
                Err(error)
            }
        }
    }

    pub(super) fn roll_back(&mut self, before: State, config: Config, applied: bool) {
        let node_changed = self.config.node != config.node;
        self.state = before;
        self.config = config;
        self.watch();
        if node_changed && !self.attachments.is_empty() {
            let old = self.config.clone();
            self.attach_error = self.attach(&old).err().map(|error| format!("{error:#}"));
        }
        if !applied {
            return;
        }
        if let Err(error) = self.apply() {
            tracing::error!("a refused change is still in the data plane: {error:#}");
        }
        // The document may be the new one already; if this fails too, the next change writes it.
        let overlay = self.state.overlay();
        if let Err(error) = tokio::task::block_in_place(|| self.store.save(overlay)) {
            tracing::error!("a refused change may come back with a restart: {error:#}");
        }
    }
}
