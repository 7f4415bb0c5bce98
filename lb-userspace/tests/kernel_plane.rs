//! The data plane in a real kernel: what a change looks like to packets that are being decided at the same moment. Needs root;
//! without it every test is shown as ignored. Nothing is attached: packets are run with BPF_PROG_TEST_RUN, one at a time.

mod testrun;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lb_common::abi::{Node, Route, ServiceEntry};
use lb_common::address::Address;
use lb_common::event::Event;
use lb_common::reason::Reason;
use lb_common::service::{Directory, Echo, Service, ServiceTuple, VipNote, vip_bit};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Status, TableWord};
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::{DataPlane as _, Operation, grace, objects};
use lb_userspace::model::{Affinity, Capacity, ServiceKey, TableSize, Tracking};
use lb_userspace::plan::{DesiredService, Installed};
use libtest_mimic::{Arguments, Failed, Trial};
use testrun::{Program, XDP_DROP, XDP_PASS, XDP_TX, desired, key, mark, packet, route};

/// How long packets run against changes, for each of the two proofs.
const CHANGING: Duration = Duration::from_millis(2_500);

const SMALL: Capacity = Capacity {
    services: 64,
    backends: 64,
    slots: 4_096,
    flows: 0,
};

fn load(capacity: &Capacity) -> KernelDataPlane {
    KernelDataPlane::load(objects::BALANCER, "test", capacity).expect("the program loads")
}

fn apply(plane: &mut KernelDataPlane, operations: &[Operation]) {
    for operation in operations {
        plane.apply(operation).expect("applied");
    }
}

fn entries(services: &[(ServiceKey, u32, u32)]) -> Vec<ServiceEntry> {
    let mut entries = Vec::new();
    for (key, number, first_slot) in services {
        let address = Address::from(key.vip);
        let tuple = ServiceTuple {
            address,
            port: key.port.to_be(),
            protocol: 6,
        };
        let data = Service {
            number: *number,
            client_affinity: false,
            first_slot: *first_slot,
            slots: 7,
            flow_idle: 70,
        };
        entries.push(ServiceEntry::service(&tuple, data));
        entries.push(ServiceEntry::vip(
            address,
            VipNote::new(vip_bit(6), Echo::Pass),
        ));
    }
    entries
}

/// One service, number 1, whose seven slots name backend 1.
fn one_service(plane: &mut KernelDataPlane) {
    let operations = [
        Operation::WriteBackend {
            id: 1,
            service: 1,
            status: Status::Active,
            route: route(0xaa),
            table: TableWord::default(),
        },
        Operation::WriteSlots {
            slots: (0..7).map(|i| (i, SlotWord::steady(1))).collect(),
        },
        Operation::SetServices {
            entries: entries(&[(key(1), 1, 0)]),
        },
    ];
    apply(plane, &operations);
}

fn operations_take_effect_and_are_counted() {
    let mut plane = load(&SMALL);
    let program = Program::of(&mut plane);
    let mut out = [0; 256];
    let syn = packet(&key(1), 1);
    assert_eq!(program.run(&syn, &mut out).0, XDP_PASS);
    assert_eq!(plane.reason_counter(Reason::NotOurs), 1);

    one_service(&mut plane);
    for _ in 0..3 {
        let (action, bytes) = program.run(&syn, &mut out);
        assert_eq!((action, mark(bytes)), (XDP_TX, Ok(0xaa)));
        assert_eq!(bytes[34..], syn[14..]);
    }
    let counted = plane.backend_counters(1);
    assert_eq!((counted.packets, counted.bytes, counted.flows), (3, 120, 3));
    assert_eq!(program.run(&packet(&key(2), 1), &mut out).0, XDP_PASS);

    // The record is another service's: a slot that was not rewritten is found out.
    let stolen = Operation::WriteBackend {
        id: 1,
        service: 2,
        status: Status::Active,
        route: route(0xbb),
        table: TableWord::default(),
    };
    apply(&mut plane, &[stolen]);
    assert_eq!(program.run(&syn, &mut out).0, XDP_DROP);
    assert_eq!(plane.reason_counter(Reason::BackendGone), 1);

    apply(
        &mut plane,
        &[Operation::Grace, Operation::ClearBackend { id: 1 }],
    );
    assert_eq!(plane.backend_counters(1).packets, 0);
    assert_eq!(program.run(&syn, &mut out).0, XDP_DROP);
    apply(&mut plane, &[Operation::SetServices { entries: vec![] }]);
    assert_eq!(program.run(&syn, &mut out).0, XDP_PASS);
}

/// A flow table of one bucket, and a service whose slots all learn: backend 2 takes over from backend 1.
fn learning(plane: &mut KernelDataPlane) {
    let table = TableWord::new(0, 7, 70);
    let backend = |id, status, byte| Operation::WriteBackend {
        id,
        service: 1,
        status,
        route: route(byte),
        table,
    };
    let operations = [
        backend(1, Status::Draining, 0xaa),
        backend(2, Status::Active, 0xbb),
        Operation::WriteSlots {
            slots: (0..7)
                .map(|i| (i, SlotWord::new(Mode::Learn, 2, 1, false)))
                .collect(),
        },
        Operation::SetServices {
            entries: entries(&[(key(1), 1, 0)]),
        },
    ];
    apply(plane, &operations);
}

fn what_tracking_cannot_do_is_counted() {
    let mut out = [0; 256];
    let syn = |client| packet(&key(1), client);
    let ack = |client| {
        let mut packet = packet(&key(1), client);
        packet[47] = 0x10;
        packet
    };
    let mut sent = |program: &Program, packet: &[u8]| {
        let (action, bytes) = program.run(packet, &mut out);
        assert_eq!(action, XDP_TX);
        mark(bytes)
    };

    let mut plane = load(&SMALL);
    learning(&mut plane);
    let program = Program::of(&mut plane);
    for client in 1..=8 {
        assert_eq!(sent(&program, &syn(client)), Ok(0xbb), "pinned to P");
    }
    let counted = |plane: &KernelDataPlane| {
        Event::ALL
            .iter()
            .map(|e| plane.event_counter(*e))
            .collect::<Vec<_>>()
    };
    assert_eq!(counted(&plane), [0, 0]);
    assert_eq!(sent(&program, &syn(9)), Ok(0xaa), "no room: to I");
    assert_eq!(counted(&plane), [1, 0]);
    assert_eq!(sent(&program, &ack(10)), Ok(0xaa));
    assert_eq!(counted(&plane), [1, 1], "no room to learn it");

    let mut plane = load(&SMALL);
    learning(&mut plane);
    let program = Program::of(&mut plane);
    for client in 1..=9 {
        assert_eq!(sent(&program, &ack(client)), Ok(0xaa));
    }
    assert_eq!(counted(&plane), [0, 1], "one was given up for another");
}

fn what_is_out_of_range_is_refused() {
    let mut plane = load(&SMALL);
    for id in [0, 65, u32::MAX] {
        let write = Operation::WriteBackend {
            id,
            service: 1,
            status: Status::Active,
            route: Route::NONE,
            table: TableWord::default(),
        };
        let error = plane.apply(&write).expect_err("refused").to_string();
        assert!(error.contains(&format!("backend id {id}")), "{error}");
    }
    let slots = vec![(4_096, SlotWord::steady(1))];
    let error = plane
        .apply(&Operation::WriteSlots { slots })
        .expect_err("refused")
        .to_string();
    assert!(error.contains("slot 4096"), "{error}");
}

/// Runs packets of one service in another thread until `change` has been called for [`CHANGING`].
/// Returns packets by mark, and how often `change` was called.
fn packets_against(
    program: &Program,
    syn: &[u8],
    mut change: impl FnMut(u64),
) -> ([u64; 256], u64) {
    let ended = AtomicBool::new(false);
    let started = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let packets = scope.spawn(|| {
            let mut seen = [0; 256];
            let mut out = [0; 256];
            while !ended.load(Ordering::Relaxed) {
                let (action, bytes) = program.run(syn, &mut out);
                assert_eq!(action, XDP_TX, "after {} packets", seen.iter().sum::<u64>());
                seen[mark(bytes).unwrap() as usize] += 1;
                started.fetch_add(1, Ordering::Relaxed);
            }
            seen
        });
        let end = Instant::now() + CHANGING;
        while started.load(Ordering::Relaxed) == 0 && Instant::now() < end {
            std::thread::yield_now();
        }
        let mut changes = 0;
        while Instant::now() < end && !packets.is_finished() {
            change(changes);
            changes += 1;
        }
        ended.store(true, Ordering::Relaxed);
        (packets.join().expect("no packet went astray"), changes)
    })
}

/// Changes were made, and each but the first waited for a grace period before it wrote over what the one before had put out of
/// force. What would happen else needs a packet that dawdles, which cannot be had here.
fn check_waits(plane: &KernelDataPlane, changes: u64) {
    assert!(changes > 10, "only {changes} changes");
    let waits = plane.grace_periods();
    assert!(waits + 1 >= changes, "{changes} changes, {waits} waits");
}

fn no_packet_sees_a_half_written_route() {
    let mut plane = load(&SMALL);
    let program = Program::of(&mut plane);
    one_service(&mut plane);
    let routes = [route(0xaa), route(0xbb)];
    let (seen, changes) = packets_against(&program, &packet(&key(1), 1), |i| {
        let write = Operation::WriteBackend {
            id: 1,
            service: 1,
            status: Status::Active,
            route: routes[i as usize % 2],
            table: TableWord::default(),
        };
        apply(&mut plane, &[write]);
    });
    let (a, b) = (seen[0xaa], seen[0xbb]);
    println!("  {changes} changes of a route; {a} + {b} packets, each of one route");
    assert!(a > 0 && b > 0 && a + b == seen.iter().sum::<u64>());
    assert_eq!(plane.backend_counters(1).packets, a + b);
    check_waits(&plane, changes);
}

/// Two services that meet this one in its bucket, in a table with the first seed that is tried.
fn in_the_bucket_of(key: &ServiceKey) -> [ServiceKey; 2] {
    let node = Node {
        // As for `SMALL`: sixteen buckets for each of two entries of a service.
        service_mask: SMALL.services * 32 - 1,
        ..Node::default()
    };
    let bucket = |key: &ServiceKey| {
        let tuple = ServiceTuple {
            address: Address::from(key.vip),
            port: key.port.to_be(),
            protocol: 6,
        };
        Directory::new(0, 0).bucket(&node, &tuple)
    };
    let mut rivals = (2..u16::MAX)
        .map(self::key)
        .filter(|other| bucket(other) == bucket(key));
    [rivals.next(), rivals.next()].map(|rival| rival.expect("one of 2,048 buckets"))
}

fn a_service_stays_while_others_come_and_go() {
    let mut plane = load(&SMALL);
    let program = Program::of(&mut plane);
    one_service(&mut plane);
    // The others stand in the same bucket as the one that stays, so it moves: from way to way, and (three do not fit) with the
    // table's seed. They have its slots but another number: a packet taken for one of theirs is dropped.
    let rivals = in_the_bucket_of(&key(1));
    let stays = (key(1), 1, 0);
    let [a, b] = [0, 1].map(|i| (rivals[i], 9, 0));
    let tables = [
        vec![stays],
        vec![a, stays],
        vec![stays, b],
        vec![a, b, stays],
    ]
    .map(|services| entries(&services));
    let (seen, changes) = packets_against(&program, &packet(&key(1), 1), |i| {
        let entries = tables[i as usize % tables.len()].clone();
        apply(&mut plane, &[Operation::SetServices { entries }]);
    });
    println!("  {changes} service tables; {} packets", seen[0xaa]);
    assert!(seen[0xaa] > 0 && seen[0xaa] == seen.iter().sum::<u64>());
    check_waits(&plane, changes);
}

/// Plans and applies; how long each took.
fn go(
    plane: &mut KernelDataPlane,
    installed: &mut Installed,
    desired: &[DesiredService],
) -> (Duration, Duration) {
    let started = Instant::now();
    let plan = installed.plan(desired, false).expect("it fits");
    let planned = started.elapsed();
    apply(plane, &plan.operations);
    *installed = plan.after;
    (planned, started.elapsed() - planned)
}

/// `affinity = "client-ip"`: what is remembered is the client, and neither a new connection nor the end of one moves the others.
fn a_clients_connections_stay_together() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const FIN: u8 = 0x11;
    let mut plane = load(&SMALL);
    let mut installed = Installed::new(SMALL);
    let program = Program::of(&mut plane);
    let send = |client: u8, port: u8, flags: u8| {
        let mut packet = packet(&key(1), client);
        packet[35] = port;
        packet[47] = flags;
        let mut out = [0; 256];
        let (action, bytes) = program.run(&packet, &mut out);
        assert_eq!(action, XDP_TX);
        mark(bytes).expect("a whole header")
    };
    let mut wanted = desired(key(1), TableSize::Fixed(1_021), 1..=3);
    wanted.affinity = Affinity::ClientIp;
    go(&mut plane, &mut installed, &[wanted.clone()]);
    let before: Vec<u8> = (0..200).map(|client| send(client, 1, SYN)).collect();
    assert!((1..=3).all(|n| before.contains(&n)));

    wanted.backends[1].eligible = false;
    wanted.backends[1].status = Status::Draining;
    go(&mut plane, &mut installed, &[wanted.clone()]);
    for (client, backend) in (0..).zip(&before) {
        // Every other client is first met by an opener: it may have connections that are silent.
        let first = if client % 2 == 0 { ACK } else { SYN };
        for (port, flags) in [(1, first), (2, SYN), (2, ACK), (2, FIN), (3, SYN), (1, ACK)] {
            let reached = send(client, port, flags);
            assert_eq!(
                reached, *backend,
                "client {client}, port {port}, flags {flags:#x}"
            );
        }
    }
    // And so when it is back, and another one comes.
    wanted.backends[1].eligible = true;
    wanted.backends[1].status = Status::Active;
    wanted.backends.extend(
        desired(key(1), TableSize::Fixed(1_021), 1..=4)
            .backends
            .pop(),
    );
    go(&mut plane, &mut installed, &[wanted]);
    for (client, backend) in (0..).zip(&before) {
        assert_eq!(send(client, 4, SYN), *backend, "client {client}");
    }
}

/// A pin from before a service was not tracked for a while must not win over the flow that there has been since.
fn what_was_ignored_is_cleared() {
    let mut plane = load(&SMALL);
    let mut installed = Installed::new(SMALL);
    let program = Program::of(&mut plane);
    let mut out = [0; 256];
    let syn = packet(&key(1), 1);
    let mut ack = syn.clone();
    ack[14 + 20 + 13] = 0x10;
    let mut reached = |packet: &[u8]| {
        let (action, bytes) = program.run(packet, &mut out);
        assert_eq!(action, XDP_TX);
        mark(bytes).expect("a whole header")
    };
    let wanted = |tracking, drained: Option<u8>| {
        let mut service = desired(key(1), TableSize::Auto, 1..=2);
        service.tracking = tracking;
        for backend in &mut service.backends {
            if Some(backend.address) == drained.map(|n| IpAddr::from([10, 0, 0, n])) {
                (backend.eligible, backend.status) = (false, Status::Draining);
            }
        }
        [service]
    };
    go(
        &mut plane,
        &mut installed,
        &wanted(Tracking::Adaptive, None),
    );
    let old = reached(&syn);
    go(
        &mut plane,
        &mut installed,
        &wanted(Tracking::Adaptive, Some(old)),
    );
    let pinned = reached(&syn);
    assert_ne!(
        pinned, old,
        "an opener goes to the new primary, and is pinned"
    );
    go(&mut plane, &mut installed, &wanted(Tracking::Off, None));
    assert_eq!(reached(&syn), old, "the pin is not looked at");

    assert_eq!(plane.clear_unneeded().expect("a sweep"), 1);
    assert_eq!(plane.clear_unneeded().expect("a sweep"), 0);
    go(
        &mut plane,
        &mut installed,
        &wanted(Tracking::Adaptive, None),
    );
    go(
        &mut plane,
        &mut installed,
        &wanted(Tracking::Adaptive, Some(old)),
    );
    assert_eq!(reached(&ack), old, "the open connection stays");
    assert_eq!(
        plane.clear_unneeded().expect("a sweep"),
        0,
        "what is learnt is needed"
    );
    assert_eq!(reached(&ack), old);
}

fn how_long_changes_take() {
    let capacity = Capacity::default();
    let mut plane = load(&capacity);
    let mut installed = Installed::new(capacity);
    let started = Instant::now();
    for _ in 0..5 {
        grace::wait().expect("a grace period");
    }
    println!("  a grace period: {:?}", started.elapsed() / 5);

    let big = TableSize::Fixed(65_537);
    for (what, backends) in [("a new table", 100), ("one backend less", 99)] {
        let wanted = [desired(key(1), big, 1..=backends)];
        let (planned, applied) = go(&mut plane, &mut installed, &wanted);
        println!("  65,537 slots, {what}: planned in {planned:?}, applied in {applied:?}");
    }
    let many: Vec<_> = (1..=1_000)
        .map(|n| desired(key(n), TableSize::Auto, 1..=3))
        .collect();
    let (planned, applied) = go(&mut plane, &mut installed, &many);
    println!("  1,000 services of 3 backends: planned in {planned:?}, applied in {applied:?}");

    let program = Program::of(&mut plane);
    let mut out = [0; 256];
    for n in 1..=1_000 {
        let (action, bytes) = program.run(&packet(&key(n), 1), &mut out);
        assert_eq!(action, XDP_TX, "service {n}");
        assert!((1..=3).contains(&mark(bytes).unwrap()), "service {n}");
    }
    let (_, applied) = go(&mut plane, &mut installed, &many[1..]);
    println!("  one service less: applied in {applied:?}");
    assert_eq!(program.run(&packet(&key(1), 1), &mut out).0, XDP_PASS);
    // Generous: the machine may be busy, the program unoptimized.
    assert!(applied < Duration::from_secs(5), "took {applied:?}");
}

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let test = |name: &str, body: fn()| {
        let body = move || {
            body();
            Ok::<(), Failed>(())
        };
        Trial::test(name, body)
            .with_kind(if root { "bpf" } else { "needs root" })
            .with_ignored_flag(!root)
    };
    let tests = vec![
        test(
            "operations_take_effect_and_are_counted",
            operations_take_effect_and_are_counted,
        ),
        test(
            "what_tracking_cannot_do_is_counted",
            what_tracking_cannot_do_is_counted,
        ),
        test(
            "what_is_out_of_range_is_refused",
            what_is_out_of_range_is_refused,
        ),
        test(
            "no_packet_sees_a_half_written_route",
            no_packet_sees_a_half_written_route,
        ),
        test(
            "a_service_stays_while_others_come_and_go",
            a_service_stays_while_others_come_and_go,
        ),
        test(
            "a_clients_connections_stay_together",
            a_clients_connections_stay_together,
        ),
        test("what_was_ignored_is_cleared", what_was_ignored_is_cleared),
        test("how_long_changes_take", how_long_changes_take),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}
