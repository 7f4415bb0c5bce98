//! The decapsulator of backends: golden tunnel packets, natively and in the kernel.

mod cases;

use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::Xdp;
use lb_common::abi::names;
use lb_common::address::Address;
use lb_common::decap::{Decapped, EVERY, Key, decapsulate, key};
use lb_common::native::MemoryFrame;
use lb_userspace::dataplane::decap;
use libtest_mimic::Trial;

use self::cases::{golden, restricted};
use crate::cases::{Expect, all};
use crate::frame::{ETHERNET, UDP};
use crate::outer::Mode;
use crate::run::{Action, Kernel, Native, Run, test_run};
use crate::world::{BACKENDS, INGRESS, SOURCE4, SOURCE6, backend_of};
use crate::{kernel, native};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in golden() {
        let name = format!("decap: {}", case.name);
        let (frame, expect) = (case.frame.clone(), case.expect);
        trials.push(native(&name, move || {
            check(&frame, expect, run_natively(&frame)?)
        }));
        trials.push(kernel(&name, move || {
            check(&case.frame, case.expect, run_in_kernel(&case.frame)?)
        }));
    }
    for case in restricted() {
        let name = format!("decap: {}", case.name);
        let (frame, expect) = (case.frame.clone(), case.expect);
        trials.push(native(&name, move || {
            check(&frame, expect, natively(&frame, &senders())?)
        }));
        trials.push(kernel(&name, move || {
            check(
                &case.frame,
                case.expect,
                in_kernel(&RESTRICTED, &case.frame)?,
            )
        }));
    }
    trials.push(native(
        "decap: what the balancer encapsulated is as it was",
        || round_trip(&mut Native::new()?, run_natively),
    ));
    trials.push(kernel(
        "decap: what the balancer encapsulated is as it was",
        || round_trip(&mut *Kernel::get()?, run_in_kernel),
    ));
    trials.push(native("decap: every length from 0 to 200", || {
        lengths(0, run_natively)
    }));
    trials.push(kernel(
        "decap: every length from 14 to 200, as natively",
        || lengths(ETHERNET, run_in_kernel),
    ));
    trials
}

/// What became of a frame, and its bytes.
type Outcome = (Decapped, Vec<u8>);

fn allowed() -> impl Iterator<Item = IpAddr> {
    BACKENDS
        .iter()
        .flat_map(|backend| [backend.v4().into(), backend.v6().into()])
}

/// The outer sources of the golden tunnel packets.
fn senders() -> Vec<Key> {
    vec![key_of(SOURCE4.into()), key_of(SOURCE6.into())]
}

fn key_of(address: IpAddr) -> Key {
    key(&Address::from(address))
}

fn run_natively(frame: &[u8]) -> Result<Outcome> {
    natively(frame, &[EVERY])
}

fn natively(frame: &[u8], sources: &[Key]) -> Result<Outcome> {
    let mut frame = MemoryFrame::new(frame, 1);
    let destinations: Vec<_> = allowed().map(key_of).collect();
    let result = decapsulate(
        &mut frame,
        |key| destinations.contains(key),
        |key| sources.contains(key),
    );
    Ok((result, frame.bytes()))
}

struct Loaded {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
}

type Shared = LazyLock<Result<Mutex<Loaded>, String>>;

static OPEN: Shared = LazyLock::new(|| load_shared(&[EVERY]));
static RESTRICTED: Shared = LazyLock::new(|| load_shared(&senders()));

fn load_shared(sources: &[Key]) -> Result<Mutex<Loaded>, String> {
    load(sources)
        .map(Mutex::new)
        .map_err(|error| format!("{error:#}"))
}

fn load(sources: &[Key]) -> Result<Loaded> {
    let mut ebpf = decap::load()?;
    let mut fill = |name, keys: &[Key]| -> Result<()> {
        let mut list: HashMap<_, Key, u64> =
            HashMap::try_from(ebpf.map_mut(name).context("no such list")?)?;
        for key in keys {
            list.insert(key, 1, 0)?;
        }
        Ok(())
    };
    let destinations: Vec<_> = allowed().map(key_of).collect();
    fill(names::DECAP_ALLOWED, &destinations)?;
    fill(names::DECAP_SOURCES, sources)?;
    let counters = PerCpuArray::try_from(
        ebpf.take_map(names::DECAP_COUNTERS)
            .context("no counters")?,
    )?;
    let program: &mut Xdp = ebpf
        .program_mut(names::DECAP)
        .context("no program")?
        .try_into()?;
    program.load()?;
    Ok(Loaded { ebpf, counters })
}

impl Loaded {
    fn count(&self) -> Result<Vec<u64>> {
        Decapped::ALL
            .iter()
            .map(|(kind, _)| Ok(self.counters.get(&(*kind as u32), 0)?.iter().sum()))
            .collect()
    }
}

fn run_in_kernel(frame: &[u8]) -> Result<Outcome> {
    in_kernel(&OPEN, frame)
}

fn in_kernel(shared: &Shared, frame: &[u8]) -> Result<Outcome> {
    let loaded = shared.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    let before = loaded.count()?;
    let program: &mut Xdp = loaded
        .ebpf
        .program_mut(names::DECAP)
        .context("no program")?
        .try_into()?;
    let (action, bytes) = test_run(program, frame, INGRESS)?;
    let after = loaded.count()?;
    let moved: Vec<_> = (0..Decapped::ALL.len())
        .filter(|i| after[*i] != before[*i])
        .collect();
    ensure!(
        moved.len() == 1 && after[moved[0]] == before[moved[0]] + 1,
        "counters: {before:?} became {after:?}"
    );
    let (kind, name) = Decapped::ALL[moved[0]];
    let expected = if kind == Decapped::Bad {
        Action::Drop
    } else {
        Action::Pass
    };
    ensure!(
        action == expected,
        "{name} was counted, but the verdict is {action:?}"
    );
    Ok((kind, bytes))
}

fn check(frame: &[u8], expect: Decapped, (result, bytes): Outcome) -> Result<()> {
    ensure!(result == expect, "{expect:?} expected, got {result:?}");
    let expected = if expect == Decapped::Done {
        stripped(frame)
    } else {
        frame.to_vec()
    };
    ensure!(
        bytes == expected,
        "{expected:x?}\nexpected, got\n{bytes:x?}"
    );
    Ok(())
}

/// Bytes of a tunnel packet's outer headers, Ethernet excluded.
fn outer_length(frame: &[u8]) -> usize {
    let (ip, protocol) = if frame[12..14] == [0x08, 0x00] {
        (20, frame[ETHERNET + 9])
    } else {
        (40, frame[ETHERNET + 6])
    };
    if protocol == UDP { ip + 12 } else { ip }
}

/// The frame without its outer headers.
fn stripped(frame: &[u8]) -> Vec<u8> {
    let outer = outer_length(frame);
    let inner = &frame[ETHERNET + outer..];
    let mut bytes = frame[..12].to_vec();
    bytes.extend(if inner[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    });
    bytes.extend(inner);
    bytes
}

/// Balancer, then backend: the client's packet again, behind the tunnel's MAC addresses.
fn round_trip(balancer: &mut dyn Run, decap: fn(&[u8]) -> Result<Outcome>) -> Result<()> {
    let mut tunnels = 0;
    for case in all() {
        let Expect::Forward {
            backend,
            l2_length,
            v6,
            ..
        } = case.expect
        else {
            continue;
        };
        if backend_of(backend).mode == Mode::L2 {
            continue;
        }
        tunnels += 1;
        let sent = balancer.run(&case.frame)?.bytes;
        let (result, bytes) = decap(&sent)?;
        ensure!(result == Decapped::Done, "{}: {result:?}", case.name);
        let mut expected = sent[..12].to_vec();
        expected.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        expected.extend(&case.frame[l2_length..]);
        ensure!(
            bytes == expected,
            "{}: {expected:x?}\nexpected, got\n{bytes:x?}",
            case.name
        );
    }
    ensure!(
        tunnels >= 120,
        "only {tunnels} golden packets went through a tunnel"
    );
    Ok(())
}

fn lengths(shortest: usize, decap: fn(&[u8]) -> Result<Outcome>) -> Result<()> {
    for case in golden() {
        for length in shortest..=200 {
            let mut frame = case.frame.clone();
            frame.resize(length, 0);
            let outcome = decap(&frame)?;
            let what = || format!("{}, {length} bytes", case.name);
            ensure!(
                outcome == run_natively(&frame)?,
                "{}: the kernel {outcome:x?}",
                what()
            );
            let (result, bytes) = outcome;
            if result == Decapped::Done {
                ensure!(bytes == stripped(&frame), "{}", what());
                let field = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
                let end = if frame[12] == 0x08 {
                    field(16)
                } else {
                    40 + field(18)
                };
                ensure!(
                    ETHERNET + end <= length,
                    "{}: not whole, but decapsulated",
                    what()
                );
            } else {
                ensure!(bytes == frame, "{}: changed", what());
            }
        }
    }
    Ok(())
}
