//! What cannot be carried on with is refused, and left as it is; what can be in another size is.

use std::fs;

use aya::maps::xdp::DevMapHash;
use aya::maps::{Map, MapData};
use lb_userspace::dataplane::attach::{self, BALANCER_PREFIX};
use lb_userspace::dataplane::{Adoptable, DataPlane as _};
use lb_userspace::model::{Capacity, XdpMode};

use crate::place::{ACK, CAPACITY, Place, SYN, check, drained, in_change, open, send, service};
use crate::testrun::{self, Program, XDP_DROP, XDP_PASS, key};

pub fn capacity_grows_and_nothing_is_forgotten() {
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
pub fn another_flow_table_waits_for_rest() {
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

pub fn what_is_not_ours_is_refused_and_left_alone() {
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
pub fn what_was_never_attached_is_begun_anew() {
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
pub fn a_mode_that_is_refused_takes_nothing_down() {
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
