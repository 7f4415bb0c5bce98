//! The data plane in a real kernel: what a change looks like to packets that are being decided at the same moment. Needs root;
//! without it every test is shown as ignored. Nothing is attached: packets are run with BPF_PROG_TEST_RUN, one at a time.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lb_common::abi::{Node, Route, ServiceEntry};
use lb_common::address::Address;
use lb_common::checksum;
use lb_common::encap::Way;
use lb_common::event::Event;
use lb_common::reason::Reason;
use lb_common::service::{Directory, Service, ServiceTuple, vip_bit};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Status, TableWord};
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::{DataPlane as _, Operation, grace};
use lb_userspace::model::{Affinity, Capacity, OnEmpty, Protocol, ServiceKey, TableSize};
use lb_userspace::plan::{DesiredBackend, DesiredService, Installed};
use libtest_mimic::{Arguments, Failed, Trial};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Test packets come in by the loopback interface; a route through it is XDP_TX.
const LOOPBACK: u32 = 1;
/// How long packets run against changes, for each of the two proofs.
const CHANGING: Duration = Duration::from_millis(2_500);

const SMALL: Capacity = Capacity {
    services: 64,
    backends: 64,
    slots: 4_096,
    flows: 0,
};

fn load(capacity: &Capacity) -> KernelDataPlane {
    KernelDataPlane::load("test", capacity).expect("the program loads")
}

/// The program by a descriptor of its own, so that packets run while the plane is changed.
struct Program(OwnedFd);

/// What BPF_PROG_TEST_RUN reads and writes: the head of `union bpf_attr` (linux/bpf.h, struct `test`).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    action: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context: [u32; 2],
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

impl Program {
    fn of(plane: &mut KernelDataPlane) -> Self {
        let fd = plane.program().fd().expect("it is loaded");
        Self(fd.as_fd().try_clone_to_owned().expect("a descriptor"))
    }

    /// Runs one packet; the verdict and the packet as it leaves.
    fn run<'a>(&self, packet: &[u8], out: &'a mut [u8; 256]) -> (u32, &'a [u8]) {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        let mut attr = TestRun {
            program: self.0.as_raw_fd() as u32,
            size_in: packet.len() as u32,
            size_out: out.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        // SAFETY: both buffers live through the call and are as long as said; the kernel writes `attr` and `out` only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attr,
                size_of::<TestRun>(),
            )
        };
        assert_eq!(result, 0, "test run: {}", io::Error::last_os_error());
        (attr.action, &out[..attr.size_out as usize])
    }
}

fn key(n: u16) -> ServiceKey {
    ServiceKey {
        vip: IpAddr::from([203, 0, (n >> 8) as u8, n as u8]),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

/// A TCP SYN to the service.
fn packet(key: &ServiceKey, client: u8) -> Vec<u8> {
    let IpAddr::V4(vip) = key.vip else {
        panic!("services here are IPv4")
    };
    let mut packet = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0];
    packet.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([198, 51, 100, client]);
    packet.extend(vip.octets());
    packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0]);
    packet.extend([0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

/// A route of which every byte that can be chosen says `mark`.
fn route(mark: u8) -> Route {
    let way = Way {
        ifindex: LOOPBACK,
        mtu: 1_500,
        source_mac: [mark; 6],
        destination_mac: [mark; 6],
    };
    let address = IpAddr::from([mark; 4]);
    Route::ipip(&way, false, address, address).expect("one family")
}

/// The mark of a whole, valid outer header; anything else is a mixture.
fn mark(packet: &[u8]) -> Result<u8, String> {
    let header = packet.get(..34).ok_or("too short")?;
    let mark = header[0];
    let marked = [&header[..12], &header[26..34]].concat();
    let mut ip: [u8; 20] = header[14..34].try_into().expect("20 bytes");
    let stated = u16::from_be_bytes([ip[10], ip[11]]);
    ip[10..12].fill(0);
    let valid = checksum::finish(checksum::sum(&ip)) == stated;
    if valid && ip[9] == 4 && marked.iter().all(|b| *b == mark) {
        Ok(mark)
    } else {
        Err(format!("a torn header: {header:02x?}"))
    }
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
        entries.push(ServiceEntry::vip(address, vip_bit(6)));
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

fn desired(key: ServiceKey, size: TableSize, backends: u8) -> DesiredService {
    let backend = |n| DesiredBackend {
        address: IpAddr::from([10, 0, 0, n]),
        weight: 1,
        eligible: true,
        status: Status::Active,
        lingers: false,
        only_down: false,
        may_keep: true,
        route: Some(route(n)),
    };
    DesiredService {
        key,
        affinity: Affinity::FiveTuple,
        tracking: lb_userspace::model::Tracking::Adaptive,
        flow_idle: 1_734,
        table_size: size,
        on_empty: OnEmpty::Keep,
        backends: (1..=backends).map(backend).collect(),
    }
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
        let wanted = [desired(key(1), big, backends)];
        let (planned, applied) = go(&mut plane, &mut installed, &wanted);
        println!("  65,537 slots, {what}: planned in {planned:?}, applied in {applied:?}");
    }
    let many: Vec<_> = (1..=1_000)
        .map(|n| desired(key(n), TableSize::Auto, 3))
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
        test("how_long_changes_take", how_long_changes_take),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}
