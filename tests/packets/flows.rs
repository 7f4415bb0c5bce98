//! What holds between packets: flows stay together, clients stay together where that is asked for, and the outer header is right
//! for every traffic class and every length.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use libtest_mimic::Trial;

use crate::cases::{errors::error, good, through_gue};
use crate::frame::{ACK, FIN, Frame, QINQ, SYN, VLAN, internet_checksum};
use crate::outer::{Chosen, Mode};
use crate::run::{Action, Kernel, Native, Outcome, Run, other};
use crate::world::{BACKENDS, Backend, GUE4, GUE6, INGRESS, MANY4, MANY6, Via, backend_of};
use crate::{kernel, native};

type Test = fn(&mut dyn Run) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    (
        "packets of a flow go to one backend, whatever else is in them",
        five_tuple,
    ),
    (
        "a client's packets go to one backend, whatever the ports",
        client_ip,
    ),
    (
        "an ICMP error goes where the packets of its flow go",
        errors,
    ),
    (
        "tunnels of different flows have different flow labels",
        flow_labels,
    ),
    (
        "GUE has a source port for each flow, of the whole dynamic range",
        source_ports,
    ),
    ("every traffic class is copied", traffic_classes),
    ("every length gives a valid outer header", lengths),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, test) in TESTS {
        trials.push(native(name, || test(&mut Native::new()?)));
        trials.push(kernel(name, || test(&mut *Kernel::get()?)));
    }
    trials.push(kernel(
        "packets leave by XDP_TX where they came in, elsewhere by XDP_REDIRECT",
        ways_out,
    ));
    trials.push(kernel(
        "a flow's backend is the same natively",
        same_natively,
    ));
    trials
}

/// The backend a frame went to, and what of its outer header comes from the hash.
fn sent(outcome: &Outcome) -> Result<(&'static Backend, Chosen)> {
    let (id, _) = outcome
        .backends
        .first()
        .with_context(|| format!("not forwarded: {outcome:x?}"))?;
    let backend = backend_of(*id);
    Ok((backend, Chosen::of(backend.mode, &outcome.bytes)))
}

/// Frames of one flow for each `i`, to the services with several backends that hash the 5-tuple.
fn flow(i: u16) -> [Frame; 2] {
    let (host, port) = (i % 200 + 1, 1_024 + i * 7);
    [
        Frame::udp(MANY4, 53).from(&format!("198.51.100.{host}"), port),
        Frame::tcp(MANY6, 80).from(&format!("2001:db8:c::{host:x}"), port),
    ]
}

fn five_tuple(run: &mut dyn Run) -> Result<()> {
    let mut used = BTreeSet::new();
    for i in 0..300 {
        for frame in flow(i) {
            let (backend, label) = sent(&run.run(&frame.bytes())?)?;
            used.insert(backend.id);
            for same in [
                frame.clone().flags(SYN),
                frame.clone().flags(FIN | ACK).payload(0),
                frame.clone().payload(1_000).tos(0xff),
                frame.clone().tag(QINQ).tag(VLAN),
                if frame.v6() {
                    frame.clone().extension(crate::frame::Extension::HopByHop)
                } else {
                    frame.clone().options(3)
                },
            ] {
                let (other, other_label) = sent(&run.run(&same.bytes())?)?;
                ensure!(
                    other.id == backend.id,
                    "flow {i} went to {} and to {}",
                    backend.id,
                    other.id
                );
                ensure!(
                    other_label == label,
                    "flow {i} has labels {label:x?} and {other_label:x?}"
                );
            }
        }
    }
    ensure!(used == backends_of(&[9, 10]), "backends used: {used:?}");
    Ok(())
}

/// From whatever router it comes: what counts is whose packet it quotes.
fn errors(run: &mut dyn Run) -> Result<()> {
    let mut used = BTreeSet::new();
    for i in 0..200_u16 {
        let (host, port) = (i % 100 + 1, 1_024 + i * 7);
        let v4 = format!("198.51.100.{host}");
        let v6 = format!("2001:db8:c::{host:x}");
        let there = [
            Frame::udp(MANY4, 53).from(&v4, port),
            Frame::tcp(MANY6, 80).from(&v6, port),
            // By the client's address alone.
            Frame::tcp(MANY4, 80).from(&v4, port),
            Frame::udp(MANY6, 53).from(&v6, port),
        ];
        let back = [
            Frame::udp(&v4, port).from(MANY4, 53),
            Frame::tcp(&v6, port).from(MANY6, 80),
            Frame::tcp(&v4, port).from(MANY4, 80),
            Frame::udp(&v6, port).from(MANY6, 53),
        ];
        for (there, back) in there.iter().zip(&back) {
            let (vip, kind, header) = if there.v6() {
                (MANY6, 2, 40)
            } else {
                (MANY4, 3, 20)
            };
            let error = error(vip, kind, 4 * (kind & 1), &back.packet()[..header + 8]);
            let (backend, label) = sent(&run.run(&there.bytes())?)?;
            let (other, other_label) = sent(&run.run(&error.bytes())?)?;
            ensure!(
                other.id == backend.id,
                "flow {i} goes to {}, an error about it to {}",
                backend.id,
                other.id
            );
            ensure!(
                other_label == label,
                "flow {i} has label {label:?}, an error about it {other_label:?}"
            );
            used.insert(backend.id);
        }
    }
    ensure!(
        used == backends_of(&[8, 9, 10, 11]),
        "backends used: {used:?}"
    );
    Ok(())
}

fn client_ip(run: &mut dyn Run) -> Result<()> {
    let mut used = BTreeSet::new();
    for client in 1..=100 {
        let v4 = format!("198.51.100.{client}");
        let v6 = format!("2001:db8:c::{client:x}");
        let (mut ids4, mut ids6) = (BTreeSet::new(), BTreeSet::new());
        for i in 0..20_u16 {
            let frame = Frame::tcp(MANY4, 80 + i).from(&v4, 40_000 + 31 * i);
            ids4.insert(sent(&run.run(&frame.bytes())?)?.0.id);
            let frame = Frame::udp(MANY6, 53 + i).from(&v6, 40_000 + 31 * i);
            ids6.insert(sent(&run.run(&frame.bytes())?)?.0.id);
        }
        ensure!(
            ids4.len() == 1 && ids6.len() == 1,
            "client {client} went to {ids4:?} and {ids6:?}"
        );
        used.extend(ids4);
        used.extend(ids6);
    }
    ensure!(used == backends_of(&[8, 11]), "backends used: {used:?}");
    Ok(())
}

fn backends_of(services: &[u32]) -> BTreeSet<u32> {
    BACKENDS
        .iter()
        .filter(|b| services.contains(&b.service))
        .map(|b| b.id)
        .collect()
}

fn flow_labels(run: &mut dyn Run) -> Result<()> {
    let mut labels = HashSet::new();
    let mut tunnels = 0;
    for i in 0..300 {
        for frame in flow(i) {
            let (backend, label) = sent(&run.run(&frame.bytes())?)?;
            if backend.mode == Mode::V6 {
                tunnels += 1;
                labels.insert(label.flow_label);
            }
        }
    }
    // 400 draws from 2^20 meet 0.08 times on average.
    ensure!(
        tunnels >= 350,
        "only {tunnels} of the flows went through IPv6"
    );
    ensure!(
        labels.len() >= tunnels - 5,
        "{tunnels} flows have only {} labels",
        labels.len()
    );
    Ok(())
}

fn source_ports(run: &mut dyn Run) -> Result<()> {
    // `Chosen` never reads less than 49,152, so what is sent is looked at here as well.
    const PORTS: usize = 14 + 20;
    let (mut all, mut quarters) = (HashSet::new(), BTreeSet::new());
    for i in 0..300_u16 {
        let frame = Frame::tcp(GUE4, 80).from("198.51.100.7", 1_024 + i * 7);
        let outcome = run.run(&frame.bytes())?;
        let (_, chosen) = sent(&outcome)?;
        let port = u16::from_be_bytes([outcome.bytes[PORTS], outcome.bytes[PORTS + 1]]);
        ensure!(
            port == chosen.source_port,
            "flow {i} has source port {port}"
        );
        all.insert(port);
        quarters.insert(port >> 12);
        for same in [
            frame.clone().flags(SYN),
            frame.clone().flags(FIN | ACK).payload(0),
            frame.clone().payload(1_000).tos(0xff),
            frame.clone().tag(VLAN).options(3),
        ] {
            let (_, again) = sent(&run.run(&same.bytes())?)?;
            ensure!(again == chosen, "flow {i}: {chosen:x?} and {again:x?}");
        }
    }
    // 300 draws from 2^14 meet 2.7 times on average.
    ensure!(all.len() >= 285, "300 flows have {} ports", all.len());
    ensure!(quarters.len() == 4, "only ports of {quarters:x?}000");

    // With an IPv6 outer header, port and flow label are drawn apart: together they tell all flows apart.
    let mut both = HashSet::new();
    for i in 0..300_u16 {
        let frame = Frame::tcp(GUE6, 80).from("2001:db8:c::7", 1_024 + i * 7);
        both.insert(sent(&run.run(&frame.bytes())?)?.1);
    }
    ensure!(both.len() == 300, "300 flows look like {}", both.len());
    Ok(())
}

/// The whole expected output of a frame for a service with a single backend.
fn exactly(run: &mut dyn Run, frame: &Frame, id: u32, what: &str) -> Result<()> {
    let bytes = frame.bytes();
    let outcome = run.run(&bytes)?;
    let backend = backend_of(id);
    let chosen = Chosen::of(backend.mode, &outcome.bytes);
    let mut expected = backend.outer(
        frame.v6(),
        frame.packet_length(),
        frame.type_of_service(),
        chosen,
    );
    expected.extend(&bytes[frame.l2_length()..]);
    ensure!(
        outcome.bytes == expected,
        "{what}: {expected:x?}\nexpected, got\n{:x?}",
        outcome.bytes
    );
    if let Some(header) = backend.mode.outer_ipv4() {
        let sum = internet_checksum(&outcome.bytes[header]);
        ensure!(sum == 0, "{what}: the outer header sums to {sum:#x}");
    }
    Ok(())
}

fn traffic_classes(run: &mut dyn Run) -> Result<()> {
    for (name, frame, id) in good().into_iter().chain(through_gue()) {
        for tos in 0..=255 {
            exactly(
                run,
                &frame.clone().tos(tos),
                id,
                &format!("{name}, traffic class {tos:#04x}"),
            )?;
        }
    }
    Ok(())
}

fn lengths(run: &mut dyn Run) -> Result<()> {
    for (name, frame, id) in good().into_iter().chain(through_gue()) {
        let most = usize::from(backend_of(id).mtu)
            - backend_of(id).overhead()
            - frame.clone().payload(0).packet_length();
        for payload in 0..=most {
            exactly(
                run,
                &frame.clone().payload(payload),
                id,
                &format!("{name}, {payload} bytes"),
            )?;
        }
    }
    Ok(())
}

fn same_natively() -> Result<()> {
    let (mut in_kernel, mut native) = (Kernel::get()?, Native::new()?);
    for i in 0..2_000 {
        for frame in flow(i) {
            let bytes = frame.bytes();
            let (a, b) = (in_kernel.run(&bytes)?, native.run(&bytes)?);
            ensure!(a == b, "flow {i}: the kernel {a:x?}\nnatively {b:x?}");
        }
    }
    Ok(())
}

/// The same packets, coming in by loopback and by the other interface. Loopback is not in the device map.
fn ways_out() -> Result<()> {
    let mut kernel = Kernel::get()?;
    for (name, frame, id) in good() {
        let via = backend_of(id).via;
        let expected = match via {
            Via::Ingress => [(INGRESS, Action::Tx), (other(), Action::Drop)],
            _ => [(INGRESS, Action::Redirect), (other(), Action::Tx)],
        };
        for (ingress, action) in expected {
            let outcome = kernel.run_from(ingress, &frame.bytes())?;
            ensure!(
                outcome.action == action,
                "{name} from {ingress}: {:?}, not {action:?}",
                outcome.action
            );
            let refused = outcome.reasons == [(Reason::Egress, 1)];
            ensure!(
                refused == (action == Action::Drop),
                "{name} from {ingress}: {:?}",
                outcome.reasons
            );
        }
    }
    Ok(())
}
