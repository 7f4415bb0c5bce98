//! A daemon dies, at any step of its work, and the next one carries on with its maps: nothing is forgotten, nothing leaks, no packet
//! goes astray meanwhile. Needs root and bpffs on /sys/fs/bpf; without them every test is shown as ignored. The program is attached
//! to the loopback interface of a network namespace of this process alone; packets are run with BPF_PROG_TEST_RUN.

#[path = "../testrun/mod.rs"]
mod testrun;

mod place;
mod refusals;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use lb_common::abi::Route;
use lb_common::slot::Mode;
use lb_userspace::dataplane::{DataPlane as _, Operation};
use lb_userspace::model::TableSize;
use lb_userspace::plan::DesiredService;
use libtest_mimic::{Arguments, Failed, Trial};

use place::{
    ACK, BPFFS, CAPACITY, Daemon, Flows, Place, SYN, check, drained, in_change, open, send, service,
};
use refusals::{
    a_mode_that_is_refused_takes_nothing_down, another_flow_table_waits_for_rest,
    capacity_grows_and_nothing_is_forgotten, what_is_not_ours_is_refused_and_left_alone,
    what_was_never_attached_is_begun_anew,
};
use testrun::{Program, XDP_PASS, key, route};

fn nothing_is_forgotten() {
    let place = Place::new();
    let (daemon, flows) = in_change(&place);
    let desired = [drained(service(1, &[1, 2, 3]), 2)];
    let before = daemon.installed.clone();
    let counted = daemon.plane.backend_counters(1).packets;
    let [_, learning, _] = daemon.plane.modes(0, 31);
    assert!(learning > 0 && counted > 0);
    drop(daemon);

    let mut daemon = place.start(CAPACITY).expect("a restart");
    assert!(daemon.adopted);
    let (old, new) = (
        &before.services[&key(1)],
        &daemon.installed.services[&key(1)],
    );
    assert_eq!(
        (new.number, new.first_slot, new.size),
        (old.number, old.first_slot, old.size)
    );
    assert_eq!(new.backends, old.backends);
    assert_eq!(daemon.plane.backend_counters(1).packets, counted);
    check(&daemon, &key(1), &flows, "before the first plan");
    place.attach(&mut daemon);
    daemon.go(&desired);
    check(&daemon, &key(1), &flows, "after the first plan");
    // And what was open goes on through the next change.
    daemon.go(&[drained(service(1, &[1, 2, 3, 4]), 2)]);
    check(&daemon, &key(1), &flows, "after the next change");
    assert_eq!(place.sets(), 1);
}

/// What is left of a set of services, whatever there was.
fn ids_in_use(daemon: &Daemon) -> BTreeSet<u32> {
    let services = daemon.installed.services.values();
    services
        .flat_map(|service| service.backends.values().map(|backend| backend.id))
        .collect()
}

/// Every change of a life, broken off after each of its operations.
fn it_may_die_at_any_operation() {
    let mut moved = service(1, &[1, 2, 4]);
    moved.table_size = TableSize::Fixed(61);
    let stays = service(9, &[9]);
    let changes: [(&str, Vec<DesiredService>); 6] = [
        (
            "a backend is drained",
            vec![drained(service(1, &[1, 2, 3]), 2), stays.clone()],
        ),
        (
            "a backend comes, another goes",
            vec![service(1, &[1, 3, 4]), stays.clone()],
        ),
        (
            "a service comes",
            vec![service(1, &[1, 2, 3]), service(2, &[5, 6]), stays.clone()],
        ),
        ("a service goes", vec![stays.clone()]),
        ("a table of another size", vec![moved, stays.clone()]),
        (
            "one goes, one comes",
            vec![service(2, &[1, 2]), stays.clone()],
        ),
    ];
    let mut deaths = 0;
    for (what, desired) in &changes {
        let mut last = false;
        for operations in 0.. {
            if last {
                break;
            }
            let place = Place::new();
            let mut daemon = place.start(CAPACITY).expect("a first start");
            daemon.go(&[service(1, &[1, 2, 3]), stays.clone()]);
            place.attach(&mut daemon);
            let old = Program::of(&mut daemon.plane);
            let flows = open(&daemon, &key(1));
            let plan = daemon.plan(desired);
            last = operations == plan.operations.len();
            for operation in &plan.operations[..operations] {
                daemon.plane.apply(operation).expect("applied");
            }
            drop(daemon);
            deaths += 1;
            let when = format!("{what}, dead after {operations} operations");

            // Its program goes on: the other service is served, no flow is lost on the way to nobody.
            assert_eq!(send(&old, &key(9), 1, ACK), Ok(9), "{when}");
            let mut daemon = place.start(CAPACITY).expect("a restart");
            place.attach(&mut daemon);
            daemon.go(desired);
            assert_eq!(daemon.send(&key(9), 1, ACK), Ok(9), "{when}");
            let wanted: usize = desired.iter().map(|s| s.backends.len()).sum();
            assert_eq!(
                daemon.installed.backends_used(),
                wanted as u64,
                "{when}: ids leak"
            );
            assert_eq!(ids_in_use(&daemon).len(), wanted, "{when}");
            for service in desired {
                let addresses: BTreeSet<u8> = service
                    .backends
                    .iter()
                    .map(|b| match b.address {
                        IpAddr::V4(ip) => ip.octets()[3],
                        IpAddr::V6(_) => unreachable!("backends here are IPv4"),
                    })
                    .collect();
                for client in 200..=255 {
                    let reached = daemon.send(&service.key, client, SYN).expect("forwarded");
                    assert!(addresses.contains(&reached), "{when}: reached {reached}");
                }
            }
            // Flows whose backend is still there are still there.
            if let Some(service) = desired
                .iter()
                .find(|s| s.key == key(1) && s.table_size == TableSize::Fixed(31))
            {
                let stay: Flows = flows
                    .into_iter()
                    .filter(|(_, n)| {
                        service
                            .backends
                            .iter()
                            .any(|b| b.address == IpAddr::from([10, 0, 0, *n]))
                    })
                    .collect();
                assert!(stay.len() > 100);
                check(&daemon, &key(1), &stay, &when);
            } else if desired.iter().all(|s| s.key != key(1)) {
                assert_eq!(daemon.send(&key(1), 1, SYN), Err(XDP_PASS), "{when}");
            }
            let again = daemon.installed.plan(desired, false).expect("it fits");
            assert_eq!(again.operations, [], "{when}");
        }
    }
    println!("  {deaths} deaths");
    assert!(deaths > 30);
}

/// Dead on the way to a table elsewhere, which the next one does not want: flows are still looked for in the table in force.
fn a_move_that_broke_off_forgets_nothing() {
    let place = Place::new();
    let (daemon, mut flows) = in_change(&place);
    // New ones of slots in change are where they are by their entries alone.
    for client in 201..250 {
        let backend = daemon.send(&key(1), client, SYN).expect("forwarded");
        assert!(flows.insert(client, backend).is_none());
    }
    check(&daemon, &key(1), &flows, "in change");
    let stays = [drained(service(1, &[1, 2, 3]), 2)];
    let mut moves = stays.clone();
    moves[0].table_size = TableSize::Fixed(61);
    let mut plane = daemon.plane;
    let plan = daemon.installed.plan(&moves, false).expect("it fits");
    for operation in &plan.operations {
        if matches!(operation, Operation::SetServices { .. }) {
            break;
        }
        plane.apply(operation).expect("applied");
    }
    drop(plane);

    let mut daemon = place.start(CAPACITY).expect("a restart");
    place.attach(&mut daemon);
    daemon.plane.clear_unneeded().expect("cleared");
    daemon.go(&stays);
    check(&daemon, &key(1), &flows, "after a restart");
}

/// The route that is installed leads through an interface that is no more, and nobody knows another.
fn an_interface_that_is_gone_holds_nothing_up() {
    let ip = |arguments: &str| {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.expect("ip(8)").success(), "ip {arguments}");
    };
    ip("link add gone0 type veth peer name gone1");
    let ifindex = nix::net::if_::if_nametoindex("gone0").expect("it is there");
    let place = Place::new();
    let mut daemon = place.start(CAPACITY).expect("a first start");
    let mut desired = [drained(service(1, &[1, 2]), 2)];
    desired[0].backends[1].route = Some(Route {
        ifindex,
        ..route(2)
    });
    daemon.go(&desired);
    place.attach(&mut daemon);
    let flows = open(&daemon, &key(1));
    drop(daemon);
    ip("link delete gone0");

    desired[0].backends[1].route = None;
    let mut daemon = place.start(CAPACITY).expect("a restart");
    place.attach(&mut daemon);
    daemon.go(&desired);
    check(&daemon, &key(1), &flows, "after a restart");
    daemon.go(&[desired[0].clone(), service(2, &[3])]);
    assert_eq!(daemon.send(&key(2), 1, SYN), Ok(3));
}

/// What a dead daemon was about to settle is called off, and learnt for another whole window.
fn settling_is_called_off() {
    let place = Place::new();
    let (mut daemon, flows) = in_change(&place);
    // As if it had died between announcing and taking over.
    let settling: Vec<_> = daemon
        .plane
        .slot_words(0, 31)
        .into_iter()
        .enumerate()
        .filter(|(_, word)| word.mode() == Mode::Learn)
        .map(|(i, word)| {
            let word =
                lb_common::slot::SlotWord::new(Mode::Learn, word.primary(), word.incumbent(), true);
            (i as u32, word)
        })
        .collect();
    assert!(!settling.is_empty());
    daemon
        .plane
        .apply(&Operation::WriteSlots { slots: settling })
        .expect("applied");
    drop(daemon);
    let daemon = place.start(CAPACITY).expect("a restart");
    assert!(
        daemon
            .plane
            .slot_words(0, 31)
            .iter()
            .all(|word| !word.settling())
    );
    check(&daemon, &key(1), &flows, "called off");
}

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let mounted = nix::sys::statfs::statfs(BPFFS)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if root && !arguments.list {
        // Threads of this process inherit it; it goes with the last of them.
        place::sweep();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    }
    let able = root && mounted;
    let test = |name: &str, body: fn()| {
        let body = move || {
            body();
            Ok::<(), Failed>(())
        };
        Trial::test(name, body)
            .with_kind(if able { "bpf" } else { "needs root and bpffs" })
            .with_ignored_flag(!able)
    };
    let tests = vec![
        test("nothing_is_forgotten", nothing_is_forgotten),
        test("it_may_die_at_any_operation", it_may_die_at_any_operation),
        test(
            "a_move_that_broke_off_forgets_nothing",
            a_move_that_broke_off_forgets_nothing,
        ),
        test(
            "an_interface_that_is_gone_holds_nothing_up",
            an_interface_that_is_gone_holds_nothing_up,
        ),
        test("settling_is_called_off", settling_is_called_off),
        test(
            "a_mode_that_is_refused_takes_nothing_down",
            a_mode_that_is_refused_takes_nothing_down,
        ),
        test(
            "capacity_grows_and_nothing_is_forgotten",
            capacity_grows_and_nothing_is_forgotten,
        ),
        test(
            "another_flow_table_waits_for_rest",
            another_flow_table_waits_for_rest,
        ),
        test(
            "what_is_not_ours_is_refused_and_left_alone",
            what_is_not_ours_is_refused_and_left_alone,
        ),
        test(
            "what_was_never_attached_is_begun_anew",
            what_was_never_attached_is_begun_anew,
        ),
    ];
    // All attach to the one loopback interface, which takes one program.
    let arguments = Arguments {
        test_threads: Some(1),
        ..arguments
    };
    libtest_mimic::run(&arguments, tests).exit();
}
