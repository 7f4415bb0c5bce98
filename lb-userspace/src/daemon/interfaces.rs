//! The program on the node's interfaces, and nowhere else.

use anyhow::Result;

use super::owner::Owner;
use crate::dataplane::Pins;
use crate::dataplane::attach::{self, BALANCER_PREFIX};
use crate::model::{Config, XdpMode};

impl Owner {
    /// Attaches to every named interface; when all of them are, lets go of others.
    pub(super) fn attach(&mut self, config: &Config) -> Result<()> {
        let pins = Pins::new(&config.node.pin);
        let directory = pins.links();
        self.carries_traffic = true;
        let mode = config.node.xdp_mode;
        let mut standing = std::mem::take(&mut self.attachments);
        standing.retain(|attachment| attachment.asked == mode && attachment.stands());
        let mut errors = Vec::new();
        for interface in &config.node.interfaces {
            // This process has one program: where it is attached, nothing is to be done.
            if let Some(i) = standing.iter().position(|a| a.interface == *interface) {
                self.attachments.push(standing.swap_remove(i));
                continue;
            }
            let program = self.plane.program();
            match attach::attach(program, interface, mode, &directory, BALANCER_PREFIX) {
                Ok(attachment) => {
                    tracing::info!(interface, ifindex = attachment.ifindex, mode = %attachment.got, "attached");
                    if let Some(note) = &attachment.note {
                        tracing::warn!(interface, "{note}");
                    }
                    self.attachments.push(attachment);
                }
                // The others get theirs all the same.
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        anyhow::ensure!(errors.is_empty(), "{}", errors.join("; "));
        let keep: Vec<_> = self.attachments.iter().map(|a| a.ifindex).collect();
        for freed in attach::detach_others(&directory, BALANCER_PREFIX, &keep)? {
            tracing::info!(
                interface = freed,
                "detached: the interface is gone, or node.interfaces no longer names it"
            );
        }
        // No link holds an older program now.
        pins.drop_older_sets()
    }

    /// # Errors
    /// When an interface did not get the mode that was asked for by name, and kept another.
    pub(super) fn require_mode(&self) -> Result<()> {
        for attachment in &self.attachments {
            let got = attachment.asked == XdpMode::Auto || attachment.asked == attachment.got;
            anyhow::ensure!(
                got,
                "{}: {}; xdp_mode = \"auto\" or \"generic\" may work",
                attachment.interface,
                attachment.note.as_deref().unwrap_or("another mode stays")
            );
        }
        Ok(())
    }
}
