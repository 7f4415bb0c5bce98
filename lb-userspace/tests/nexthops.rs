//! Next hops against a real kernel, in network namespaces. Needs root; without it every test is shown as ignored.
//!
//! ```text
//! balancer ── eth0 10.7.0.1/24, fd07::1/64 ──────── near0 10.7.0.2, fd07::2 ─┐
//!          └─ eth1 10.8.0.1/24, fd08::1/64 ──────── near1 10.8.0.2, fd08::2 ─┴─ peer, a router to 10.9.0.0/16, fd09::/64
//! ```

#[path = "nexthops/lab.rs"]
mod lab;

use std::collections::HashSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Lab, PATIENCE};
use lb_userspace::check::{self, Severity};
use lb_userspace::model::{
    Affinity, BackendSpec, Capacity, Config, Forward, HealthSpec, NodeSpec, OnEmpty, Protocol,
    ServiceKey, ServiceSpec, TableSize, XdpMode,
};
use lb_userspace::netlink::XdpTransmit;
use lb_userspace::netlink::{self, NextHopState};
use libtest_mimic::{Arguments, Failed, Trial};

const NEAR0: [u8; 6] = [2, 0, 0, 0, 0, 0x20];
const NEAR1: [u8; 6] = [2, 0, 0, 0, 0, 0x21];

fn resolves(address: &str, gateway: bool, source: &str) {
    let lab = Lab::new();
    let started = Instant::now();
    let next_hop = lab.watch(&[address]).resolved();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "took {:?}",
        started.elapsed()
    );
    assert_eq!(next_hop.interface, "eth0");
    assert_eq!(next_hop.destination_mac, NEAR0);
    assert_ne!(next_hop.source_mac, [0; 6]);
    assert_eq!(next_hop.on_link, !gateway);
    assert_eq!(next_hop.source, source.parse::<IpAddr>().unwrap());
    assert_eq!(next_hop.mtu, 1500);
}

fn an_ipv4_route_through_an_ipv6_gateway() {
    let lab = Lab::new();
    lab.balancer("route add 10.10.0.0/16 via inet6 fd07::2 dev eth0");
    let next_hop = lab.watch(&["10.10.0.1"]).resolved();
    assert_eq!((next_hop.destination_mac, next_hop.on_link), (NEAR0, false));
}

fn a_route_mtu_counts() {
    let lab = Lab::new();
    lab.balancer("route add 10.10.0.0/16 via 10.7.0.2 mtu 1400");
    let watcher = lab.watch(&["10.10.0.1"]);
    assert_eq!(watcher.resolved().mtu, 1400);
    lab.balancer("link set eth0 mtu 1300");
    assert_eq!(watcher.resolved().mtu, 1300);
}

fn a_new_mac_of_the_peer_is_noticed() {
    let lab = Lab::new();
    // The peer announces its new address, as hosts that fail over do.
    lab.sysctl(&lab.peer, "ipv4/conf/near0/arp_notify", "1");
    lab.sysctl(&lab.peer, "ipv6/conf/near0/ndisc_notify", "1");
    let watcher = lab.watch(&["10.9.0.1", "10.7.0.2", "fd07::2"]);
    for _ in 0..3 {
        assert_eq!(watcher.resolved().destination_mac, NEAR0);
    }
    // The kernel ignores a second ARP answer within its `locktime` of one second.
    std::thread::sleep(Duration::from_millis(1_200));
    lab.peer("link set near0 address 02:00:00:00:00:99");
    let mut changed = HashSet::new();
    while changed.len() < 3 {
        let event = watcher.next(Duration::from_secs(20));
        if matches!(&event.state, NextHopState::Resolved(next_hop) if next_hop.destination_mac[5] == 0x99)
        {
            changed.insert(event.address);
        }
    }
}

/// Traffic through XDP never confirms a neighbour, so nobody but the resolver would notice.
fn a_neighbour_that_vanishes_silently_is_noticed() {
    let lab = Lab::new();
    for family in ["ipv4", "ipv6"] {
        // Reachable for 1.5 to 4.5 s, and well longer than the delay: otherwise the kernel takes its own probes for use
        // and never lets the entry become stale.
        for (key, value) in [
            ("base_reachable_time_ms", "3000"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "100"),
        ] {
            lab.sysctl(&lab.balancer, &format!("{family}/neigh/eth0/{key}"), value);
        }
    }
    let watcher = lab.watch_refreshing_every(&["10.7.0.2", "fd07::2"], Duration::from_secs(1));
    watcher.resolved();
    watcher.resolved();
    // Long enough to become stale and to be confirmed at least once.
    watcher.silent_for(Duration::from_secs(6));
    lab.peer("addr flush dev near0");
    let mut gone = vec![
        watcher.unresolved(Duration::from_secs(10)),
        watcher.unresolved(Duration::from_secs(10)),
    ];
    gone.sort();
    assert_eq!(
        gone,
        [
            "10.7.0.2 on eth0 does not answer ARP",
            "fd07::2 on eth0 does not answer neighbour discovery"
        ]
    );
}

fn a_change_of_route_is_noticed() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.9.0.1"]);
    assert_eq!(watcher.resolved().interface, "eth0");
    let changed = Instant::now();
    lab.balancer("route replace 10.9.0.0/16 via 10.8.0.2");
    let next_hop = watcher.resolved();
    assert!(
        changed.elapsed() < Duration::from_secs(1),
        "took {:?}",
        changed.elapsed()
    );
    assert_eq!(
        (next_hop.interface.as_str(), next_hop.destination_mac),
        ("eth1", NEAR1)
    );
    // A route for something else is no news.
    lab.balancer("route add 10.77.0.0/16 via 10.8.0.2");
    watcher.silent_for(Duration::from_millis(300));
    lab.balancer("route del 10.9.0.0/16");
    assert_eq!(watcher.unresolved(PATIENCE), "no route to 10.9.0.1");
}

/// A bridge that appears while its address is watched: events do not tell what it can transmit, so it must be asked.
fn a_bridge_transmits_no_xdp_frames() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.7.0.2"]);
    // The other end has no XDP program; kernels before 6.3 do not tell.
    let before = watcher.resolved().xdp_transmit;
    assert!(
        [XdpTransmit::WithProgram, XdpTransmit::Unknown].contains(&before),
        "{before:?}"
    );
    lab.balancer("link add br0 type bridge");
    lab.balancer("link set br0 up");
    lab.balancer("addr flush dev eth0");
    lab.balancer("link set eth0 master br0");
    lab.balancer("addr add 10.7.0.1/24 dev br0");
    let next_hop = watcher.resolved_at_last();
    assert_eq!(
        (next_hop.interface.as_str(), next_hop.xdp_transmit),
        ("br0", XdpTransmit::No)
    );
}

fn a_link_that_goes_down_takes_its_next_hops() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.7.0.2"]);
    watcher.resolved();
    lab.balancer("link set eth0 down");
    assert_eq!(
        watcher.unresolved(PATIENCE),
        "no route to 10.7.0.2 (eth0, which led there, is down)"
    );
    lab.balancer("link set eth0 up");
    assert_eq!(watcher.resolved_at_last().destination_mac, NEAR0);

    lab.peer("link set near0 down");
    assert_eq!(
        watcher.unresolved(PATIENCE),
        "eth0, which leads to 10.7.0.2, has no carrier"
    );
    lab.peer("link set near0 up");
    assert_eq!(watcher.resolved_at_last().destination_mac, NEAR0);

    lab.balancer("link del eth0");
    let why = watcher.unresolved(PATIENCE);
    assert!(why.starts_with("no route to 10.7.0.2"), "{why}");
}

fn what_has_no_way_says_why() {
    let lab = Lab::new();
    lab.balancer("route add blackhole 10.66.0.0/16");
    lab.balancer("route add prohibit 10.67.0.0/16");
    lab.balancer("route add unreachable fd66::/64");
    for (address, why) in [
        ("192.0.2.1", "no route to 192.0.2.1"),
        ("2001:db8::1", "no route to 2001:db8::1"),
        (
            "10.7.0.1",
            "10.7.0.1 is an address of this host; a backend must be another host",
        ),
        (
            "fd07::1",
            "fd07::1 is an address of this host; a backend must be another host",
        ),
        (
            "127.0.0.1",
            "127.0.0.1 is an address of this host; a backend must be another host",
        ),
        (
            "10.7.0.255",
            "10.7.0.255 is a broadcast address, not that of one backend",
        ),
        ("10.66.0.1", "a blackhole route swallows 10.66.0.1"),
        ("10.67.0.1", "a prohibit route forbids 10.67.0.1"),
        ("fd66::1", "an unreachable route refuses fd66::1"),
    ] {
        assert_eq!(lab.watch(&[address]).unresolved(PATIENCE), why);
    }
}

fn a_silent_neighbour_is_asked_until_it_answers() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.7.0.3", "fd07::3"]);
    for _ in 0..2 {
        let why = watcher.unresolved(Duration::from_secs(2));
        assert!(why.contains(" on eth0 has not answered "), "{why}");
    }
    let mut silent = vec![
        watcher.unresolved(Duration::from_secs(8)),
        watcher.unresolved(Duration::from_secs(8)),
    ];
    silent.sort();
    assert_eq!(
        silent,
        [
            "10.7.0.3 on eth0 does not answer ARP",
            "fd07::3 on eth0 does not answer neighbour discovery"
        ]
    );
    // Further failures are no news.
    watcher.silent_for(Duration::from_secs(4));
    lab.peer("addr add 10.7.0.3/24 dev near0");
    lab.peer("addr add fd07::3/64 dev near0 nodad");
    for _ in 0..2 {
        let event = watcher.next(Duration::from_secs(10));
        assert!(
            matches!(event.state, NextHopState::Resolved(_)),
            "{event:?}"
        );
    }
}

fn a_forgotten_neighbour_is_no_news() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.7.0.2", "fd07::2"]);
    watcher.resolved();
    watcher.resolved();
    lab.balancer("neigh flush dev eth0");
    watcher.silent_for(Duration::from_secs(1));
    // It has been asked for again nevertheless.
    let output = Command::new("ip")
        .args(["-n", &lab.balancer, "neigh", "show", "10.7.0.2"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("lladdr 02:00:00:00:00:20"),
        "{output:?}"
    );
}

fn each_newly_watched_address_is_reported_once() {
    let lab = Lab::new();
    let watcher = lab.watch(&["10.7.0.2"]);
    watcher.resolved();
    watcher.set(&["10.7.0.2", "10.8.0.2"]);
    assert_eq!(
        watcher.next(PATIENCE).address,
        "10.8.0.2".parse::<IpAddr>().unwrap()
    );
    watcher.silent_for(Duration::from_millis(300));
    watcher.set(&[]);
    lab.balancer("link set eth1 down");
    watcher.silent_for(Duration::from_millis(300));
    watcher.set(&["10.7.0.2"]);
    assert_eq!(watcher.resolved().interface, "eth0");
}

fn thousands_of_addresses() {
    let lab = Lab::new();
    let addresses: Vec<String> = (0..4_000)
        .map(|i| format!("10.9.{}.{}", i / 250, i % 250 + 1))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let started = Instant::now();
    let watcher = lab.watch(&addresses);
    for _ in &addresses {
        watcher.resolved();
    }
    println!("4,000 addresses resolved in {:?}", started.elapsed());
    assert!(started.elapsed() < PATIENCE);
    let changed = Instant::now();
    lab.balancer("route replace 10.9.0.0/16 via 10.8.0.2");
    for _ in &addresses {
        assert_eq!(watcher.resolved().interface, "eth1");
    }
    println!("and moved in {:?}", changed.elapsed());
    assert!(changed.elapsed() < PATIENCE);
}

fn interfaces_are_described() {
    let lab = Lab::new();
    let (found, missing, addresses) = Lab::inside(&lab.balancer, async || {
        let found = netlink::interface_by_name("eth1").await.unwrap().unwrap();
        let addresses = netlink::interface_addresses(found.ifindex).await.unwrap();
        (
            found,
            netlink::interface_by_name("eth9").await.unwrap(),
            addresses,
        )
    })
    .join()
    .unwrap();
    assert_eq!(missing, None);
    assert_eq!(
        (found.name.as_str(), found.mtu, found.up, found.carrier),
        ("eth1", 1500, true, true)
    );
    assert_eq!(found.driver.as_deref(), Some("veth"));
    assert!(
        found.addresses.contains(&"10.8.0.1".parse().unwrap()),
        "{found:?}"
    );
    assert!(
        found.addresses.contains(&"fd08::1".parse().unwrap()),
        "{found:?}"
    );
    assert_eq!(found.addresses, addresses);
}

fn check_finds_what_is_wrong() {
    let lab = Lab::new();
    lab.balancer("addr add 203.0.113.10/32 dev eth0");
    let config = Config {
        node: NodeSpec {
            interfaces: vec!["eth0".into(), "eth9".into()],
            xdp_mode: XdpMode::Auto,
            source: vec![],
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
            icmp_echo: lb_common::service::Echo::default(),
        },
        capacity: Capacity::default(),
        socket: "/run/sluice/sluice.sock".into(),
        metrics_listen: None,
        services: vec![ServiceSpec {
            name: "web".into(),
            key: ServiceKey {
                vip: "203.0.113.10".parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            forward: Forward::Ipip,
            affinity: Affinity::default(),
            tracking: lb_userspace::model::Tracking::Adaptive,
            times: lb_userspace::model::FlowTimes::usual(Protocol::Tcp),
            table_size: TableSize::Auto,
            on_empty: OnEmpty::default(),
            health: HealthSpec::default(),
            backends: ["10.7.0.2", "10.9.0.1", "10.7.0.3", "192.0.2.1"]
                .map(|address| BackendSpec {
                    address: address.parse().unwrap(),
                    weight: 1,
                    replaces: None,
                })
                .into(),
        }],
    };
    let started = Instant::now();
    let findings = Lab::inside(&lab.balancer, async move || check::run(&config).await)
        .join()
        .unwrap();
    assert!(started.elapsed() < PATIENCE, "took {:?}", started.elapsed());
    let get = |what: &str| {
        findings
            .iter()
            .find(|finding| finding.what == what)
            .unwrap_or_else(|| panic!("no `{what}` in {findings:#?}"))
    };
    assert_eq!(get("eth0").severity, Severity::Ok);
    assert!(get("eth0: driver").found.starts_with("veth "));
    assert_eq!(get("eth9").severity, Severity::Error);
    assert!(get("eth9").mend.contains("eth0, eth1"), "{:?}", get("eth9"));
    assert_eq!(get("VIP 203.0.113.10").severity, Severity::Warning);
    assert_eq!(
        get("web: next hops").found,
        "2 of 4 backends can be reached"
    );
    assert!(
        get("backend 10.7.0.3 of web: next hop")
            .found
            .contains("10.7.0.3 on eth0 ")
    );
    assert_eq!(
        get("backend 192.0.2.1 of web: next hop").found,
        "no route to 192.0.2.1"
    );
    assert_eq!(get("web: mtu of eth0").severity, Severity::Warning);
    assert_eq!(get("permissions").severity, Severity::Ok);
    for finding in &findings {
        assert_eq!(
            finding.mend.is_empty(),
            finding.severity == Severity::Ok,
            "{finding:?}"
        );
    }
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
            .with_kind(if root { "netns" } else { "needs root" })
            .with_ignored_flag(!root)
    };
    let tests = vec![
        test("on_link_ipv4", || resolves("10.7.0.2", false, "10.7.0.1")),
        test("on_link_ipv6", || resolves("fd07::2", false, "fd07::1")),
        test("through_a_gateway_ipv4", || {
            resolves("10.9.0.1", true, "10.7.0.1")
        }),
        test("through_a_gateway_ipv6", || {
            resolves("fd09::1", true, "fd07::1")
        }),
        test(
            "an_ipv4_route_through_an_ipv6_gateway",
            an_ipv4_route_through_an_ipv6_gateway,
        ),
        test("a_route_mtu_counts", a_route_mtu_counts),
        test(
            "a_new_mac_of_the_peer_is_noticed",
            a_new_mac_of_the_peer_is_noticed,
        ),
        test(
            "a_neighbour_that_vanishes_silently_is_noticed",
            a_neighbour_that_vanishes_silently_is_noticed,
        ),
        test("a_change_of_route_is_noticed", a_change_of_route_is_noticed),
        test(
            "a_bridge_transmits_no_xdp_frames",
            a_bridge_transmits_no_xdp_frames,
        ),
        test(
            "a_link_that_goes_down_takes_its_next_hops",
            a_link_that_goes_down_takes_its_next_hops,
        ),
        test("what_has_no_way_says_why", what_has_no_way_says_why),
        test(
            "a_silent_neighbour_is_asked_until_it_answers",
            a_silent_neighbour_is_asked_until_it_answers,
        ),
        test(
            "a_forgotten_neighbour_is_no_news",
            a_forgotten_neighbour_is_no_news,
        ),
        test(
            "each_newly_watched_address_is_reported_once",
            each_newly_watched_address_is_reported_once,
        ),
        test("thousands_of_addresses", thousands_of_addresses),
        test("interfaces_are_described", interfaces_are_described),
        test("check_finds_what_is_wrong", check_finds_what_is_wrong),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}
