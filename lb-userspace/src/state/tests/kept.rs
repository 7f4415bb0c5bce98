//! Run-time changes that are kept: as a document, over another file, and as a file of their own.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::config;
use crate::state::drain::Conditions;

/// What an operator may do; the numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    AddService(u8, u8),
    RemoveService(u8),
    AddBackend(u8, u8, u32),
    Replace(u8, u8, u8, u32),
    RemoveBackend(u8, u8),
    Weigh(u8, u8, u32),
    Admin(u8, u8, Admin, Option<Conditions>, Option<String>),
}

fn step() -> impl Strategy<Value = Step> {
    let admin = prop_oneof![
        Just(Admin::Active),
        Just(Admin::Draining),
        Just(Admin::Disabled)
    ];
    let weight = 0..=BackendSpec::MAX_WEIGHT;
    prop_oneof![
        (0..4_u8, 0..5_u8).prop_map(|(name, vip)| Step::AddService(name, vip)),
        (0..4_u8).prop_map(Step::RemoveService),
        (0..4_u8, 0..6_u8, weight.clone()).prop_map(|(s, b, w)| Step::AddBackend(s, b, w)),
        (0..4_u8, 0..6_u8, 0..6_u8, weight.clone())
            .prop_map(|(s, old, new, w)| Step::Replace(s, old, new, w)),
        (0..4_u8, 0..6_u8).prop_map(|(s, b)| Step::RemoveBackend(s, b)),
        (0..4_u8, 0..6_u8, weight).prop_map(|(s, b, w)| Step::Weigh(s, b, w)),
        (
            0..4_u8,
            0..6_u8,
            admin,
            option::of(conditions()),
            option::of(any::<String>())
        )
            .prop_map(|(s, b, admin, until, reason)| {
                let until = until.filter(|_| admin == Admin::Draining);
                Step::Admin(s, b, admin, until, reason)
            }),
    ]
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let timeout = (1..=Conditions::LONGEST.as_secs()).prop_map(Duration::from_secs);
    (any::<bool>(), option::of(timeout)).prop_map(|(until_empty, timeout)| Conditions {
        until_empty: until_empty || timeout.is_none(),
        timeout,
    })
}

fn name(number: u8) -> String {
    ["web", "dns", "run", "api"][usize::from(number) % 4].to_owned()
}

fn address(number: u8) -> IpAddr {
    let all = [A, B, C, "10.0.0.4", "2001:db8::1", "2001:db8::2"];
    ip(all[usize::from(number) % 6])
}

/// A service none of whose settings is the default.
fn odd(name: &str, vip: u8) -> ServiceSpec {
    let mut spec = service(name, &format!("203.0.113.{vip}"), &[A, "2001:db8::1"]);
    if vip.is_multiple_of(2) {
        return spec;
    }
    spec.key.vip = ip("2001:db8:ffff::1");
    spec.key.port = if vip == 3 { 0 } else { u16::from(vip) };
    spec.key.protocol = Protocol::Udp;
    spec.forward = Forward::L2;
    spec.affinity = Affinity::ClientIp;
    spec.tracking = crate::model::Tracking::Off;
    spec.times = crate::model::FlowTimes {
        flow_idle: Duration::from_secs(3_661),
        grace: Duration::from_millis(1_500),
        hold_down: Duration::ZERO,
        linger: Duration::from_secs(1_800),
    };
    spec.table_size = TableSize::Fixed(4_093);
    spec.on_empty = OnEmpty::Drop;
    spec.backends[0].weight = 0;
    spec.health = HealthSpec {
        kind: ProbeKind::Http {
            path: "/up?x='\"".to_owned(),
            host: Some("www.example.org".to_owned()),
            expect: (204, 204),
        },
        port: 8_080,
        interval: Duration::from_millis(61_500),
        timeout: Duration::from_millis(250),
        rise: 1,
        fall: 7,
    };
    spec
}

fn take(state: &mut State, step: &Step, at: u64) {
    let by = Some(format!("user {at}"));
    let stamp = Stamp { by, at: Some(at) };
    let existing = |services: &[Effective], s: u8, b: u8| {
        let found = services.iter().find(|x| x.spec.name == name(s));
        let found = found.filter(|x| x.backend(address(b)).is_some()).cloned();
        found.ok_or_else(|| ChangeError::NotFound(String::new()))
    };
    // What cannot be done is refused, and that is fine.
    let _ = state.change(|overlay, file, services| {
        match step.clone() {
            Step::AddService(s, _) if services.iter().any(|x| x.spec.name == name(s)) => {}
            Step::AddService(s, vip) => overlay.add_service(odd(&name(s), vip), stamp)?,
            Step::RemoveService(s) => overlay.remove_service(&name(s), file, stamp)?,
            Step::AddBackend(s, b, weight) => {
                if let Some(service) = services.iter().find(|x| x.spec.name == name(s)) {
                    let address = &address(b).to_string();
                    overlay.add_backend(service, &spec(address, weight), stamp)?;
                }
            }
            Step::Replace(s, old, new, weight) => {
                let service = existing(services, s, old)?;
                let old = service.backend(address(old)).expect("it exists");
                overlay.replace_backend(&service, old, address(new), weight, &stamp)?;
            }
            Step::RemoveBackend(s, b) => {
                overlay.remove_backend(&existing(services, s, b)?, address(b), stamp);
            }
            Step::Weigh(s, b, weight) => {
                overlay.set_weight(&existing(services, s, b)?, address(b), weight, stamp);
            }
            Step::Admin(s, b, admin, until, reason) => {
                let Stamp { by, at } = stamp;
                let record = AdminRecord {
                    admin,
                    reason,
                    by,
                    at,
                    until,
                };
                overlay.set_admin(&existing(services, s, b)?, address(b), record);
            }
        }
        Ok(())
    });
}

fn files() -> [Config; 4] {
    [
        config(&[web(), dns()]),
        config(&[]),
        config(&[odd("run", 1), service("web", "203.0.113.2", &[C])]),
        config(&[service("api", "203.0.113.1", &[A, B]), odd("web", 4)]),
    ]
}

fn changed(file: &Config, steps: &[Step]) -> State {
    let mut state = State::new(file);
    for (step, at) in steps.iter().zip(1_760_000_000..) {
        take(&mut state, step, at);
    }
    state
}

fn kept(state: &State) -> Overlay {
    Overlay::from_document(&state.overlay().to_document()).unwrap()
}

/// What holds, whoever said so.
fn holding(state: &State) -> Vec<(ServiceSpec, Vec<AdminRecord>)> {
    let admin = |s: &Effective| s.backends.iter().map(|b| b.admin.clone()).collect();
    let mut services: Vec<_> = state
        .services()
        .iter()
        .map(|s| (s.folded(), admin(s)))
        .collect();
    services.sort_by_key(|(spec, _)| spec.key);
    services
}

/// The file that `sluice save` prints.
fn saved(state: &State, file: &Config) -> Config {
    let services = state.services().iter().map(Effective::folded).collect();
    let merged = Config {
        services,
        ..file.clone()
    };
    let text = config::to_toml(&merged).unwrap();
    let read = config::parse(&text, "saved").unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(read, merged, "{text}");
    read
}

proptest! {
    #[test]
    fn a_kept_overlay_is_the_same(file in 0..4_usize, steps in vec(step(), 0..24)) {
        let file = &files()[file];
        let state = changed(file, &steps);
        let overlay = kept(&state);
        prop_assert_eq!(&overlay, state.overlay());
        prop_assert_eq!(overlay.merge(&file.services), state.overlay().merge(&file.services));
        // As after a restart.
        let (again, lost) = State::restore(file, overlay);
        prop_assert!(lost.is_empty(), "{:?}", lost);
        prop_assert_eq!(again.services(), state.services());
        prop_assert_eq!(again.overlay(), state.overlay());
    }

    /// Whatever file comes, the daemon starts, and no drain of a backend that the file has is lost.
    #[test]
    fn it_fits_every_file(before in 0..4_usize, after in 0..4_usize, steps in vec(step(), 0..24)) {
        let state = changed(&files()[before], &steps);
        let after = &files()[after];
        let (restored, _) = State::restore(after, kept(&state));
        let (again, lost) = State::restore(after, restored.overlay().clone());
        prop_assert_eq!(&lost, &Vec::<String>::new());
        prop_assert_eq!(again.services(), restored.services());
        for old in state.services() {
            let Some(new) = restored.service(&old.spec.name) else { continue };
            for backend in old.backends.iter().filter(|b| b.admin.admin != Admin::Active) {
                if let Some(now) = new.backend(backend.address) {
                    prop_assert_eq!(&now.admin, &backend.admin);
                }
            }
        }
    }

    #[test]
    fn what_is_saved_leaves_only_drains(file in 0..4_usize, steps in vec(step(), 0..24)) {
        let file = &files()[file];
        let mut state = changed(file, &steps);
        let merged = saved(&state, file);
        let (restored, lost) = State::restore(&merged, kept(&state));
        prop_assert!(lost.is_empty(), "{:?}", lost);
        let before = holding(&state);
        prop_assert!(state.reload(&merged).unwrap().is_empty());
        for state in [&state, &restored] {
            let left = state.differences();
            prop_assert!(left.iter().all(|d| d.change == Change::Admin), "{:?}", left);
            prop_assert_eq!(holding(state), before.clone());
        }
        let dropped = state.reset();
        prop_assert!(state.overlay().is_empty());
        prop_assert_eq!(dropped.is_empty(), dropped.iter().all(|d| d.change != Change::Admin));
        let alone = State::new(&merged);
        prop_assert_eq!(state.services(), alone.services());
    }
}

fn lost(state: &State, file: &Config) -> (State, String) {
    let (state, lost) = State::restore(file, kept(state));
    (state, lost.join("\n"))
}

#[test]
fn the_files_service_goes_before_one_added_at_run_time() {
    let mut state = healthy(&[web()]);
    add_service(&mut state, service("run", "203.0.113.7", &[B, C])).unwrap();
    drain(&mut state, "run", B);
    drain(&mut state, "run", C);
    add(&mut state, "run", "10.0.0.4", 3).unwrap();
    drain(&mut state, "web", A);
    // The VIP is taken.
    let (other, said) = lost(
        &state,
        &config(&[web(), service("new", "203.0.113.7", &[A])]),
    );
    assert!(
        said.contains("\"run\"") && said.contains("\"new\" has 203.0.113.7:80/tcp"),
        "{said}"
    );
    assert!(other.service("run").is_none());
    assert_eq!(backends(&other, "web")[0].2, Admin::Draining);
    // The name is taken: who was drained stays so.
    let (other, said) = lost(
        &state,
        &config(&[web(), service("run", "203.0.113.8", &[A, B])]),
    );
    for part in [
        "\"run\", added at run time",
        "10.0.0.4",
        "10.0.0.3 of \"run\", draining",
    ] {
        assert!(said.contains(part), "{part} not in {said}");
    }
    assert_eq!(
        backends(&other, "run"),
        [
            row(A, 1, Admin::Active, "file"),
            row(B, 1, Admin::Draining, "file")
        ]
    );
}

#[test]
fn what_has_no_room_is_dropped_and_named() {
    let mut state = healthy(&[web()]);
    add_service(&mut state, service("run", "203.0.113.7", &[C])).unwrap();
    add(&mut state, "web", C, 1).unwrap();
    let mut small = config(&[web()]);
    small.capacity.backends = 2;
    let (state, said) = lost(&state, &small);
    assert_eq!(
        said.matches("capacity.backends is too small").count(),
        2,
        "{said}"
    );
    assert_eq!(state.services(), State::new(&small).services());
}

#[test]
fn a_reload_says_what_it_drops() {
    let mut state = healthy(&[web(), dns()]);
    drain(&mut state, "web", A);
    weigh(&mut state, "dns", A, 7);
    remove(&mut state, "web", B).unwrap();
    let lost = state.reload(&config(&[service("web", "203.0.113.1", &[C])]));
    let lost = lost.unwrap().join("\n");
    for part in [
        "10.0.0.1 of \"web\", draining at run time (disk)",
        "weight 7",
        "does not have service \"dns\"",
    ] {
        assert!(lost.contains(part), "{part} not in {lost}");
    }
    assert!(
        !lost.contains(B),
        "that it is gone from the file too is no loss: {lost}"
    );
}

#[test]
fn differences_say_what_who_and_when() {
    let mut state = healthy(&[web(), dns()]);
    drain(&mut state, "web", A);
    weigh(&mut state, "web", B, 4);
    add(&mut state, "web", C, 2).unwrap();
    remove_service(&mut state, "dns").unwrap();
    add_service(&mut state, service("run", "203.0.113.7", &[A])).unwrap();
    let rows: Vec<_> = state
        .differences()
        .into_iter()
        .map(|d| {
            assert_eq!(d.stamp, stamp());
            let side = |side: Option<String>| side.unwrap_or_default();
            (d.change, side(d.file), side(d.now), side(d.reason))
        })
        .collect();
    let row = |change, file: &str, now: &str, reason: &str| {
        (change, file.to_owned(), now.to_owned(), reason.to_owned())
    };
    assert_eq!(
        rows,
        [
            row(Change::ServiceRemoved, "203.0.113.2:80/tcp", "", ""),
            row(Change::ServiceAdded, "", "203.0.113.7:80/tcp", ""),
            row(Change::Admin, "active", "draining", "disk"),
            row(Change::Weight, "weight 1", "weight 4", ""),
            row(Change::BackendAdded, "", "weight 2", ""),
        ]
    );
    // Back as the file says is no difference, and no trace.
    weigh(&mut state, "web", B, 1);
    assert_eq!(state.differences().len(), 4);
}

#[test]
fn a_wrong_document_is_refused_with_its_place() {
    let good = changed(
        &files()[0],
        &[Step::AddService(2, 1), Step::RemoveBackend(0, 0)],
    );
    let good = good.overlay().to_document();
    for (from, to, says) in [
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("\"format\": 1,", "", "line "),
        ("\"backends\": [", "\"backends\": [,", "line "),
        (
            "\"removed\": {",
            "\"removde\": {",
            "unknown field `removde`",
        ),
        ("2025-10-09T", "yesterday ", "is no time"),
        ("\"rise\": 1", "\"rise\": 0", "service.health.rise"),
        (
            "\"removed\": {",
            "\"weight\": {\"weight\": 1}, \"removed\": {",
            "is removed and has",
        ),
        (
            "\"address\": \"10.0.0.1\",\n      \"removed\"",
            "\"address\": \"0.0.0.0\",\n      \"removed\"",
            "0.0.0.0",
        ),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from} is not in\n{good}");
        let error = Overlay::from_document(&bad).expect_err(&bad).to_string();
        assert!(error.contains(says), "{says} not in {error}");
    }
    for end in 0..good.trim_end().len() {
        if good.is_char_boundary(end) {
            assert!(
                Overlay::from_document(&good[..end]).is_err(),
                "cut at {end}"
            );
        }
    }
}

/// What was written before drains could end by themselves is read as it was meant; what no version writes is refused.
#[test]
fn a_drain_is_kept_with_its_conditions() {
    let document = |admin: &str| {
        format!(
            r#"{{"format": 1, "services_added": [], "services_removed": [],
                "backends": [{{"service": "web", "address": "{A}", "admin": {admin}}}]}}"#
        )
    };
    let read = |admin: &str| {
        let overlay = Overlay::from_document(&document(admin)).map_err(|e| e.to_string())?;
        let (state, _) = State::restore(&config(&[web()]), overlay);
        let differences = state.differences();
        let backend = state.service("web").unwrap().backend(ip(A)).unwrap();
        assert_eq!(differences[0].now, Some(backend.admin.said()));
        Ok::<_, String>(backend.admin.said())
    };
    for (admin, said) in [
        (r#"{"state": "draining"}"#, "draining"),
        (
            r#"{"state": "draining", "until": {"empty": true}}"#,
            "draining until empty",
        ),
        (
            r#"{"state": "draining", "until": {"empty": true, "timeout_seconds": 600}}"#,
            "draining until empty, for 10m at most",
        ),
    ] {
        assert_eq!(read(admin), Ok(said.to_owned()));
    }
    for (admin, why) in [
        (
            r#"{"state": "disabled", "until": {"empty": true}}"#,
            "not draining",
        ),
        (r#"{"state": "draining", "until": {}}"#, "until nothing"),
        (
            r#"{"state": "draining", "until": {"timeout_seconds": 0}}"#,
            "less than a second",
        ),
    ] {
        let error = read(admin).unwrap_err();
        assert!(error.contains(why) && error.contains(A), "{error}");
    }
}
