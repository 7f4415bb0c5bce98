//! A daemon dies, at any step of its work, and the next one carries on with its maps: nothing is forgotten, nothing leaks, no packet
//! goes astray meanwhile. Needs root and bpffs on /sys/fs/bpf; without them every test is shown as ignored. The program is attached
//! to the loopback interface of a network namespace of this process alone; packets are run with BPF_PROG_TEST_RUN.

mod testrun;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::xdp::DevMapHash;
use aya::maps::{Map, MapData};
use lb_common::abi::Route;
use lb_common::slot::Mode;
use lb_common::track::Status;
use lb_userspace::dataplane::attach::{self, BALANCER_PREFIX};
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::{Adoptable, DataPlane as _, Operation, Pins, objects};
use lb_userspace::model::{Affinity, Capacity, OnEmpty, ServiceKey, TableSize, Tracking, XdpMode};
use lb_userspace::plan::{DesiredBackend, DesiredService, Installed, Plan};
use libtest_mimic::{Arguments, Failed, Trial};
use testrun::{Program, XDP_DROP, XDP_PASS, XDP_TX, key, mark, packet, route};

const BPFFS: &str = "/sys/fs/bpf";
const SEED: &str = "adoption";
const CAPACITY: Capacity = Capacity {
    services: 16,
    backends: 32,
    slots: 4_096,
    flows: 4_096,
};

/// A pin directory of its own, which goes with it.
struct Place(Pins, PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(BPFFS).join(format!("sluice-adoption-{}-{n}", std::process::id()));
        fs::create_dir(&path).expect("a directory in bpffs");
        Self(Pins::new(&path), path)
    }

    /// A daemon's start: what it finds, and the plane it carries on with.
    fn start(&self, capacity: Capacity) -> Result<Daemon, String> {
        let found = Adoptable::find(&self.0, SEED, &capacity).map_err(|e| format!("{e:#}"))?;
        let adopted = found.is_some();
        let installed = match &found {
            Some(found) => Installed::adopt(capacity, found.found()).map_err(|e| e.to_string())?,
            None => Installed::new(capacity),
        };
        let mut plane =
            KernelDataPlane::load_pinned(objects::BALANCER, SEED, &capacity, &self.0, found)
                .map_err(|e| format!("{e:#}"))?;
        let program = Program::of(&mut plane);
        Ok(Daemon {
            plane,
            installed,
            program,
            adopted,
        })
    }

    fn attach(&self, daemon: &mut Daemon) {
        attach::attach(
            daemon.plane.program(),
            "lo",
            XdpMode::Generic,
            &self.0.links(),
            BALANCER_PREFIX,
        )
        .expect("attached to lo");
        self.0.drop_older_sets().expect("older sets unpinned");
    }

    fn sets(&self) -> usize {
        let layout = self.0.links().with_file_name("");
        fs::read_dir(layout)
            .expect("the layout's directory")
            .filter(|entry| {
                let name = entry.as_ref().expect("an entry").file_name();
                name.to_string_lossy().starts_with("maps-")
            })
            .count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.1);
    }
}

/// What dies when it is dropped; maps and program stay, pinned.
struct Daemon {
    plane: KernelDataPlane,
    installed: Installed,
    program: Program,
    adopted: bool,
}

impl Daemon {
    fn plan(&self, desired: &[DesiredService]) -> Plan {
        self.installed.plan(desired, self.adopted).expect("it fits")
    }

    fn go(&mut self, desired: &[DesiredService]) {
        let plan = self.plan(desired);
        for operation in &plan.operations {
            self.plane.apply(operation).expect("applied");
        }
        self.installed = plan.after;
        self.adopted = false;
    }

    fn send(&self, key: &ServiceKey, client: u8, flags: u8) -> Result<u8, u32> {
        send(&self.program, key, client, flags)
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The backend that a packet goes to, or the verdict.
fn send(program: &Program, key: &ServiceKey, client: u8, flags: u8) -> Result<u8, u32> {
    let mut packet = packet(key, client);
    packet[14 + 20 + 13] = flags;
    let mut out = [0; 256];
    match program.run(&packet, &mut out) {
        (XDP_TX, bytes) => Ok(mark(bytes).expect("a whole header")),
        (verdict, _) => Err(verdict),
    }
}

fn backend(n: u8) -> DesiredBackend {
    DesiredBackend {
        address: IpAddr::from([10, 0, 0, n]),
        identity: IpAddr::from([10, 0, 0, n]),
        weight: 1,
        eligible: true,
        status: Status::Active,
        lingers: false,
        only_down: false,
        may_keep: true,
        route: Some(route(n)),
    }
}

fn service(n: u16, backends: &[u8]) -> DesiredService {
    DesiredService {
        key: key(n),
        affinity: Affinity::FiveTuple,
        tracking: Tracking::Adaptive,
        flow_idle: 1_734,
        table_size: TableSize::Fixed(31),
        on_empty: OnEmpty::Keep,
        backends: backends.iter().map(|n| backend(*n)).collect(),
    }
}

fn drained(mut service: DesiredService, n: u8) -> DesiredService {
    for backend in &mut service.backends {
        if backend.address == IpAddr::from([10, 0, 0, n]) {
            backend.eligible = false;
            backend.status = Status::Draining;
        }
    }
    service
}

/// Backends of flows that were met: (client → backend).
type Flows = BTreeMap<u8, u8>;

/// A flow of each of 200 clients, opened and established.
fn open(daemon: &Daemon, key: &ServiceKey) -> Flows {
    (0..200)
        .map(|client| {
            let backend = daemon.send(key, client, SYN).expect("forwarded");
            assert_eq!(daemon.send(key, client, ACK), Ok(backend));
            (client, backend)
        })
        .collect()
}

fn check(daemon: &Daemon, key: &ServiceKey, flows: &Flows, when: &str) {
    for (client, backend) in flows {
        assert_eq!(
            daemon.send(key, *client, ACK),
            Ok(*backend),
            "{when}: client {client}"
        );
    }
}

/// Drains a backend while 200 flows are open: some of its slots then remember flows.
fn in_change(place: &Place) -> (Daemon, Flows) {
    let mut daemon = place.start(CAPACITY).expect("a first start");
    assert!(!daemon.adopted);
    daemon.go(&[service(1, &[1, 2, 3])]);
    place.attach(&mut daemon);
    let flows = open(&daemon, &key(1));
    daemon.go(&[drained(service(1, &[1, 2, 3]), 2)]);
    check(&daemon, &key(1), &flows, "drained");
    assert!(daemon.send(&key(1), 250, SYN).is_ok());
    (daemon, flows)
}

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

fn capacity_grows_and_nothing_is_forgotten() {
    let place = Place::new();
    let (mut daemon, flows) = in_change(&place);
    let old = Program::of(&mut daemon.plane);
    let counted = daemon.plane.backend_counters(3).packets;
    drop(daemon);
    let larger = Capacity {
        services: 1_000,
        backends: 100,
        slots: 9_000,
        ..CAPACITY
    };
    let mut daemon = place.start(larger).expect("larger maps");
    assert!(daemon.adopted);
    assert_eq!(
        place.sets(),
        2,
        "the older program still reads its own maps"
    );
    for (client, backend) in &flows {
        assert_eq!(send(&old, &key(1), *client, ACK), Ok(*backend));
    }
    check(&daemon, &key(1), &flows, "in larger maps");
    // Also those that leave by another interface.
    let (_, set) = place.0.current().expect("sets").expect("a set");
    let egress = MapData::from_pin(set.join("EGRESS")).expect("opened");
    let egress = DevMapHash::try_from(Map::DevMapHash(egress)).expect("a device map");
    let egress: Vec<_> = egress.keys().map(|key| key.expect("a key")).collect();
    assert_eq!(egress, [testrun::LOOPBACK]);
    assert!(daemon.plane.backend_counters(3).packets >= counted);
    place.attach(&mut daemon);
    assert_eq!(place.sets(), 1);
    let many: Vec<_> = (1..=60).map(|n| service(n, &[1])).collect();
    let mut desired = vec![drained(service(1, &[1, 2, 3]), 2)];
    desired.extend(many[1..].iter().cloned());
    daemon.go(&desired);
    check(
        &daemon,
        &key(1),
        &flows,
        "with more than there was room for",
    );
    assert_eq!(daemon.send(&key(60), 7, SYN), Ok(1));
}

/// The flow table cannot be copied while packets write to it; an empty one need not be.
fn another_flow_table_waits_for_rest() {
    let place = Place::new();
    let (daemon, flows) = in_change(&place);
    drop(daemon);
    let other = Capacity {
        flows: 16_384,
        ..CAPACITY
    };
    let refused = place.start(other).err().expect("refused");
    for word in ["capacity.flows", "16384", "4096", "sluice detach", "steady"] {
        assert!(refused.contains(word), "{refused}");
    }
    let daemon = place.start(CAPACITY).expect("as before");
    check(&daemon, &key(1), &flows, "after a refusal");
    drop(daemon);
    drop(place);

    let place = Place::new();
    let mut daemon = place.start(CAPACITY).expect("a first start");
    daemon.go(&[service(1, &[1, 2])]);
    place.attach(&mut daemon);
    let flows = open(&daemon, &key(1));
    drop(daemon);
    let mut daemon = place.start(other).expect("all slots are at rest");
    place.attach(&mut daemon);
    check(&daemon, &key(1), &flows, "at rest");
}

fn what_is_not_ours_is_refused_and_left_alone() {
    let place = Place::new();
    let (mut daemon, flows) = in_change(&place);
    let old = Program::of(&mut daemon.plane);
    drop(daemon);
    let refused = |expected: &[&str], capacity: Capacity| {
        let said = place.start(capacity).err().expect("refused");
        for word in expected {
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
        for (client, backend) in &flows {
            assert_eq!(send(&old, &key(1), *client, ACK), Ok(*backend), "{said}");
        }
    };
    // Too small for what is there.
    let small = |change: fn(&mut Capacity)| {
        let mut capacity = CAPACITY;
        change(&mut capacity);
        capacity
    };
    refused(&["capacity.backends = 2"], small(|c| c.backends = 2));
    refused(&["capacity.slots = 30"], small(|c| c.slots = 30));
    // Another seed.
    let said = Adoptable::find(&place.0, "another", &CAPACITY)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        said.contains("node.hash_seed") && said.contains("sluice detach"),
        "{said}"
    );

    let (_, set) = place.0.current().expect("sets").expect("a set");
    // A map that is missing; one of another type.
    let aside = place.1.join("aside");
    fs::rename(set.join("SLOTS"), &aside).expect("moved");
    refused(&["SLOTS", "cannot be opened", "sluice detach"], CAPACITY);
    let egress = MapData::from_pin(set.join("EGRESS")).expect("opened");
    egress.pin(set.join("SLOTS")).expect("pinned");
    refused(&["SLOTS", "DevMapHash", "Array"], CAPACITY);
    fs::remove_file(set.join("SLOTS")).expect("removed");
    fs::rename(&aside, set.join("SLOTS")).expect("moved back");
    // Another version's.
    for other in ["links", "1", "4711"] {
        let directory = place.1.join(other);
        fs::create_dir(&directory).expect("made");
        assert!(
            place.start(CAPACITY).is_ok(),
            "an empty directory is nobody's"
        );
        egress
            .pin(directory.join("balancer-native-1"))
            .expect("pinned");
        refused(
            &[
                &directory.display().to_string(),
                "another version",
                "sluice detach",
            ],
            CAPACITY,
        );
        fs::remove_dir_all(directory).expect("removed");
    }
    let daemon = place.start(CAPACITY).expect("as before");
    check(&daemon, &key(1), &flows, "after all");
    assert!(place.0.detach().expect("detached").len() == 1);
    assert!(!place.1.exists(), "nothing is left");
}

/// Dead while its first maps were being pinned, or before anything was attached: the next one begins afresh.
fn what_was_never_attached_is_begun_anew() {
    let place = Place::new();
    fs::create_dir_all(place.0.begin_set().expect("begun")).expect("made");
    let mut daemon = place.start(CAPACITY).expect("a first start");
    daemon.go(&[service(1, &[1])]);
    drop(daemon);
    let mut daemon = place.start(CAPACITY).expect("nothing was attached");
    assert!(!daemon.adopted);
    assert_eq!(daemon.send(&key(1), 1, SYN), Err(XDP_PASS));
    daemon.go(&[service(1, &[2])]);
    place.attach(&mut daemon);
    assert_eq!(place.sets(), 1);
    assert_eq!(daemon.send(&key(1), 1, SYN), Ok(2));
    assert_ne!(daemon.send(&key(1), 1, SYN), Err(XDP_DROP));
}

/// The loopback interface takes generic programs only: one that is asked for by another mode's name is not lost over it.
fn a_mode_that_is_refused_takes_nothing_down() {
    let place = Place::new();
    let (mut daemon, flows) = in_change(&place);
    let attachment = attach::attach(
        daemon.plane.program(),
        "lo",
        XdpMode::Native,
        &place.0.links(),
        BALANCER_PREFIX,
    )
    .expect("the generic one stays");
    assert_eq!(attachment.got, XdpMode::Generic);
    let note = attachment.note.expect("a note");
    assert!(note.contains("native") && note.contains("stays"), "{note}");
    drop(daemon);
    let daemon = place.start(CAPACITY).expect("a restart");
    assert!(daemon.adopted);
    check(&daemon, &key(1), &flows, "after a refused mode");
}

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let mounted = nix::sys::statfs::statfs(BPFFS)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if root && !arguments.list {
        // Threads of this process inherit it; it goes with the last of them.
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
