//! Connections to a TCP echo server: each line has the connection's number and its own, and must come back as it was.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;

use super::{Desk, Next, Outcome, PACE, PATIENCE};
use crate::client::{Client, EchoConnection};

pub(super) struct Connection {
    echo: EchoConnection,
    label: String,
    outcome: Outcome,
}

/// Opens `count` connections from the client's address with this number.
pub(super) fn open(
    client: &Client,
    vip: SocketAddr,
    address: usize,
    count: usize,
) -> Result<Vec<Connection>> {
    let open = |number: usize| {
        let mut echo = client.connect_from(vip, address)?;
        echo.set_patience(PATIENCE)?;
        let label = format!("TCP connection {number} of client address {address}");
        let name = echo.exchange(&format!("{number} 0"))?;
        let outcome = Outcome {
            name,
            protocol: "tcp",
            broken: None,
            said: 1,
            answered: 1,
        };
        Ok(Connection {
            echo,
            label,
            outcome,
        })
    };
    (0..count).map(open).collect()
}

pub(super) fn talk(mut connections: Vec<Connection>, desk: &Desk) -> Vec<Outcome> {
    let progress = &desk.progress;
    progress
        .said
        .store(connections.len() as u64, Ordering::SeqCst);
    loop {
        let began = Instant::now();
        match desk.next() {
            Next::End => break,
            Next::BeSilent => {}
            Next::Talk => {
                for (number, connection) in connections.iter_mut().enumerate() {
                    if connection.outcome.broken.is_none() {
                        progress.said.fetch_add(1, Ordering::SeqCst);
                        connection.exchange(number, desk);
                    }
                }
                progress.rounds.fetch_add(1, Ordering::SeqCst);
            }
        }
        std::thread::sleep(PACE.saturating_sub(began.elapsed()));
    }
    connections.into_iter().map(|c| c.outcome).collect()
}

impl Connection {
    fn exchange(&mut self, number: usize, desk: &Desk) {
        let outcome = &mut self.outcome;
        let line = format!("{number} {}", outcome.said);
        outcome.said += 1;
        outcome.broken = match self.echo.exchange(&line) {
            Ok(answered) if answered == outcome.name => {
                outcome.answered += 1;
                None
            }
            Ok(answered) => Some(format!("moved to {answered}")),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(why) = &outcome.broken {
            desk.report(format!(
                "{} ({}), line {}: {why}",
                self.label,
                outcome.name,
                outcome.said - 1
            ));
        }
    }
}
