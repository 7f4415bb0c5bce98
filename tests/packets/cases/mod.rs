//! The golden cases: what goes in, and everything that must come out.

mod echo;
pub mod errors;
mod forward;
mod pass;
mod refuse;

use anyhow::{Result, bail, ensure};
use lb_common::abi::BackendCounters;
use lb_common::reason::Reason;
use libtest_mimic::Trial;

use crate::frame::{Frame, internet_checksum};
use crate::outer::Chosen;
use crate::run::{Action, Kernel, Native, Outcome, Run};
use crate::world::{GUE4, GUE6, Via, WEB4, WEB6, backend_of};
use crate::{kernel, native};

/// One golden packet.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub frame: Vec<u8>,
    pub expect: Expect,
}

#[derive(Clone, Debug)]
pub enum Expect {
    Forward {
        backend: u32,
        v6: bool,
        /// Bytes in front of the IP packet.
        l2_length: usize,
        /// Bytes of the IP packet.
        length: usize,
        tos: u8,
        opener: bool,
    },
    Refuse(Action, Reason),
    /// Back where it came from, as this frame.
    Reply(Vec<u8>),
}

/// To this backend.
fn to(name: impl Into<String>, frame: &Frame, backend: u32) -> Case {
    Case {
        name: name.into(),
        frame: frame.bytes(),
        expect: Expect::Forward {
            backend,
            v6: frame.v6(),
            l2_length: frame.l2_length(),
            length: frame.packet_length(),
            tos: frame.type_of_service(),
            opener: frame.is_opener(),
        },
    }
}

/// Untouched to the host's stack.
fn pass(name: impl Into<String>, frame: Vec<u8>, reason: Reason) -> Case {
    Case {
        name: name.into(),
        frame,
        expect: Expect::Refuse(Action::Pass, reason),
    }
}

fn drop(name: impl Into<String>, frame: Vec<u8>, reason: Reason) -> Case {
    Case {
        name: name.into(),
        frame,
        expect: Expect::Refuse(Action::Drop, reason),
    }
}

/// One good packet of each family and protocol, and the backend it goes to.
pub fn good() -> [(&'static str, Frame, u32); 4] {
    [
        ("v4 tcp", Frame::tcp(WEB4, 80), 1),
        ("v4 udp", Frame::udp(WEB4, 53), 2),
        ("v6 tcp", Frame::tcp(WEB6, 80), 5),
        ("v6 udp", Frame::udp(WEB6, 53), 6),
    ]
}

/// The same through GUE: all four combinations of families.
pub fn through_gue() -> [(&'static str, Frame, u32); 4] {
    [
        ("v4 tcp in gue4", Frame::tcp(GUE4, 80), 40),
        ("v4 udp in gue6", Frame::udp(GUE4, 53), 41),
        ("v6 tcp in gue6", Frame::tcp(GUE6, 80), 42),
        ("v6 udp in gue4", Frame::udp(GUE6, 53), 43),
    ]
}

pub fn all() -> Vec<Case> {
    let mut cases = forward::cases();
    cases.extend(echo::cases());
    cases.extend(errors::cases());
    cases.extend(pass::cases());
    cases.extend(refuse::cases());
    cases
}

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        native("good packets are good to etherparse", good_packets),
        native("every case has a name of its own", unique_names),
    ];
    for case in all() {
        let name = case.name.clone();
        let copy = case.clone();
        trials.push(native(&name, move || {
            let outcome = Native::new()?.run(&copy.frame)?;
            check(&copy, &outcome)
        }));
        trials.push(kernel(&name, move || {
            let outcome = Kernel::get()?.run(&case.frame)?;
            check(&case, &outcome)?;
            let native = Native::new()?.run(&case.frame)?;
            ensure!(
                outcome == native,
                "the kernel: {outcome:x?}\nnatively: {native:x?}"
            );
            Ok(())
        }));
    }
    trials
}

fn check(case: &Case, outcome: &Outcome) -> Result<()> {
    match &case.expect {
        Expect::Refuse(action, reason) => {
            ensure!(
                outcome.action == *action,
                "{action:?} expected, got {outcome:x?}"
            );
            let reasons = [(*reason, 1)];
            ensure!(
                outcome.reasons == reasons,
                "reason {reason:?} expected, got {outcome:x?}"
            );
            ensure!(
                outcome.backends.is_empty(),
                "counted: {:?}",
                outcome.backends
            );
            // The device map is asked last: the frame has its outer header by then.
            if *reason != Reason::Egress {
                ensure!(
                    outcome.bytes == case.frame,
                    "the frame was changed: {:x?}",
                    outcome.bytes
                );
            }
        }
        Expect::Reply(answer) => {
            ensure!(
                outcome.action == Action::Tx
                    && outcome.reasons == [(Reason::IcmpEcho, 1)]
                    && outcome.backends.is_empty(),
                "an answer expected, got {outcome:x?}"
            );
            ensure!(
                outcome.bytes == *answer,
                "{answer:x?}\nexpected, got\n{:x?}",
                outcome.bytes
            );
        }
        Expect::Forward {
            backend,
            v6,
            l2_length,
            length,
            tos,
            opener,
        } => {
            let backend = backend_of(*backend);
            let action = if backend.via == Via::Ingress {
                Action::Tx
            } else {
                Action::Redirect
            };
            ensure!(
                outcome.action == action,
                "{action:?} expected, got {outcome:x?}"
            );
            let chosen = Chosen::of(backend.mode, &outcome.bytes);
            let mut expected = backend.outer(*v6, *length, *tos, chosen);
            // Ethernet padding stays where it was: receivers go by the IP header's length.
            expected.extend(&case.frame[*l2_length..]);
            ensure!(
                outcome.bytes == expected,
                "{expected:x?}\nexpected, got\n{:x?}",
                outcome.bytes
            );
            if let Some(header) = backend.mode.outer_ipv4() {
                let sum = internet_checksum(&outcome.bytes[header]);
                ensure!(
                    sum == 0,
                    "the outer header's checksum is wrong: it sums to {sum:#x}"
                );
            }
            let counters = BackendCounters {
                packets: 1,
                bytes: *length as u64,
                flows: u64::from(*opener),
                ..BackendCounters::default()
            };
            let counted = [(backend.id, counters)];
            ensure!(
                outcome.backends == counted,
                "{counted:?} expected, got {:?}",
                outcome.backends
            );
            ensure!(
                outcome.reasons.is_empty(),
                "forwarded, and yet {:?}",
                outcome.reasons
            );
        }
    }
    Ok(())
}

/// The builder is only worth something if somebody else finds its packets right, checksums included.
fn good_packets() -> Result<()> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    for (name, frame, _) in good() {
        let bytes = frame.bytes();
        let packet = SlicedPacket::from_ethernet(&bytes)?;
        let (ok, right) = match (&packet.net, &packet.transport) {
            (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => {
                let header = ip.header().to_header();
                ensure!(
                    header.header_checksum == header.calc_header_checksum(),
                    "{name}: IPv4"
                );
                (
                    tcp.checksum(),
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())?,
                )
            }
            (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) => (
                tcp.checksum(),
                tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())?,
            ),
            (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) => {
                let right = udp.to_header().calc_checksum_ipv4_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                )?;
                (udp.checksum(), right)
            }
            (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) => {
                let right = udp.to_header().calc_checksum_ipv6_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                )?;
                (udp.checksum(), right)
            }
            other => bail!("{name}: etherparse sees {other:?}"),
        };
        ensure!(
            ok == right,
            "{name}: checksum {ok:#x}, right would be {right:#x}"
        );
    }
    Ok(())
}

fn unique_names() -> Result<()> {
    let mut names: Vec<_> = all().into_iter().map(|case| case.name).collect();
    names.sort();
    for pair in names.windows(2) {
        ensure!(pair[0] != pair[1], "two cases are called {}", pair[0]);
    }
    Ok(())
}
