//! Flows to a UDP echo server: numbered datagrams, and which numbers did not come back.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Desk, Next, Outcome, PACE};
use crate::client::Client;

/// A round is sent in so many steps: two hundred datagrams in one instant would test the depth of queues.
const STEPS: usize = 20;

/// How long a datagram's answer may take before it counts as lost. Nobody sends it again.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Flow {
    socket: UdpSocket,
    label: String,
    outcome: Outcome,
    /// Numbers sent that have not come back.
    missing: BTreeSet<u64>,
}

/// Opens `count` flows, in turn from each of the client's addresses.
pub(super) fn open(client: &Client, vip: SocketAddr, count: usize) -> Result<Vec<Flow>> {
    let addresses = client.sources(vip.ip()).len();
    let open = |number: usize| {
        let socket = client.udp_socket_from(vip, number % addresses)?;
        socket.send(b"0")?;
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).context("no first echo over UDP")?;
        let (name, echoed) = parse(&buffer[..length])?;
        ensure!(echoed == 0, "sent 0 over UDP, got {echoed} back");
        socket.set_nonblocking(true)?;
        Ok(Flow {
            socket,
            label: format!("UDP flow {number}"),
            outcome: Outcome {
                name: name.to_owned(),
                protocol: "udp",
                broken: None,
                said: 1,
                answered: 1,
            },
            missing: BTreeSet::new(),
        })
    };
    (0..count).map(open).collect()
}

pub(super) fn talk(mut flows: Vec<Flow>, desk: &Desk) -> Vec<Outcome> {
    let progress = &desk.progress;
    let at_once = flows.len().div_ceil(STEPS);
    progress.said.store(flows.len() as u64, Ordering::SeqCst);
    // Only at the start of a round: within one, nobody speaks twice.
    loop {
        match desk.next() {
            Next::End => break,
            Next::BeSilent => {
                listen(&mut flows, desk);
                std::thread::sleep(PACE / STEPS as u32);
            }
            Next::Talk => {
                for step in flows.chunks_mut(at_once) {
                    let began = Instant::now();
                    for flow in step.iter_mut().filter(|f| f.outcome.broken.is_none()) {
                        flow.listen(desk);
                        flow.send(desk);
                    }
                    std::thread::sleep((PACE / STEPS as u32).saturating_sub(began.elapsed()));
                }
                listen(&mut flows, desk);
                progress.rounds.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while listen(&mut flows, desk) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    flows
        .into_iter()
        .map(|mut flow| {
            if flow.outcome.broken.is_none() && !flow.missing.is_empty() {
                flow.breaks(format!("no answer to {:?}", flow.missing), desk);
            }
            flow.outcome
        })
        .collect()
}

/// Takes what has come. How many datagrams of flows that are whole have not been answered.
fn listen(flows: &mut [Flow], desk: &Desk) -> u64 {
    let mut outstanding = 0;
    for flow in flows.iter_mut().filter(|f| f.outcome.broken.is_none()) {
        flow.listen(desk);
        outstanding += flow.missing.len() as u64;
    }
    desk.progress
        .outstanding
        .store(outstanding, Ordering::SeqCst);
    outstanding
}

impl Flow {
    fn send(&mut self, desk: &Desk) {
        let number = self.outcome.said;
        match self.socket.send(number.to_string().as_bytes()) {
            Ok(_) => {
                self.outcome.said += 1;
                self.missing.insert(number);
                desk.progress.said.fetch_add(1, Ordering::SeqCst);
            }
            // What an earlier datagram met: nobody listens at the backend.
            Err(error) => self.breaks(format!("sending {number}: {error}"), desk),
        }
    }

    fn listen(&mut self, desk: &Desk) {
        let mut buffer = [0; 256];
        while self.outcome.broken.is_none() {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    return self.breaks(format!("waiting for {:?}: {error}", self.missing), desk);
                }
            };
            match parse(&buffer[..length]) {
                Ok((name, number)) if name == self.outcome.name => {
                    if self.missing.remove(&number) {
                        self.outcome.answered += 1;
                    } else {
                        self.breaks(format!("{number} came back twice"), desk);
                    }
                }
                Ok((name, number)) => self.breaks(format!("moved to {name} at {number}"), desk),
                Err(error) => self.breaks(format!("{error:#}"), desk),
            }
        }
    }

    fn breaks(&mut self, why: String, desk: &Desk) {
        desk.report(format!("{} ({}): {why}", self.label, self.outcome.name));
        self.outcome.broken = Some(why);
    }
}

/// The backend's name and the number it was sent.
fn parse(answer: &[u8]) -> Result<(&str, u64)> {
    let text = std::str::from_utf8(answer).context("an echo that is no text")?;
    let (name, number) = text
        .split_once(' ')
        .with_context(|| format!("strange echo {text:?}"))?;
    let number = number
        .parse()
        .with_context(|| format!("strange echo {text:?}"))?;
    Ok((name, number))
}
