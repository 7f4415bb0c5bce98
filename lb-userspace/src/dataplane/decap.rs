//! `sluice decap`: our decapsulator on a backend that has no tunnel device.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::Xdp;
use aya::programs::xdp::{XdpLinkId, XdpMode as Flags};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::names;
use lb_common::address::Address;
use lb_common::decap::{Decapped, EVERY, Key, key};
use tokio::signal::unix::{SignalKind, signal};

use super::objects;
use crate::model::XdpMode;

/// How often the interface's addresses are read again.
const REFRESH: Duration = Duration::from_secs(5);
/// How often the interface itself is looked at: one that is deleted and made again has lost its program.
const LOOK: Duration = Duration::from_secs(1);
/// How long the interface may be gone, or refuse the program, before this process ends. Nothing else would tell: probes go to the
/// backend's own address and succeed without a decapsulator.
const PATIENCE: Duration = Duration::from_secs(30);

/// Loads the decapsulator's object and maps; its program is not yet given to the verifier.
///
/// # Errors
/// What the kernel said: usually that the caller is not root.
pub fn load() -> Result<Ebpf> {
    EbpfLoader::new()
        .load(objects::DECAP)
        .context("the decapsulator could not be loaded (run as root)")
}

/// Attaches the decapsulator and runs until SIGTERM or SIGINT; then it is gone again.
///
/// `allow`: outer destinations to take; empty: the interface's own addresses, kept current. `from`: outer sources to take;
/// empty: every source.
pub async fn run(
    interface: &str,
    mode: XdpMode,
    allow: Vec<IpAddr>,
    from: Vec<IpAddr>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ebpf = load()?;
    let mut allowed = take_list(&mut ebpf, names::DECAP_ALLOWED)?;
    let mut sources = take_list(&mut ebpf, names::DECAP_SOURCES)?;
    let counters: PerCpuArray<MapData, u64> = PerCpuArray::try_from(
        ebpf.take_map(names::DECAP_COUNTERS)
            .context("the object has no counters")?,
    )?;

    let current = wanted(interface, &allow).await?;
    set(&mut allowed, &[], &current)?;
    set(&mut sources, &[], &from)?;
    if from.is_empty() {
        sources.insert(EVERY, 1, 0)?;
    }

    let program: &mut Xdp = ebpf
        .program_mut(names::DECAP)
        .context("the object has no program")?
        .try_into()?;
    program
        .load()
        .context("the kernel refuses the decapsulator")?;
    let mut attached = attach(program, interface, mode)?;
    println!(
        "decapsulating on {interface} ({}) for {}{}",
        attached.got,
        list(&current),
        if from.is_empty() {
            String::new()
        } else {
            format!(" from {}", list(&from))
        }
    );

    let mut current = current;
    let mut refresh = tokio::time::interval(REFRESH);
    let mut look = tokio::time::interval(LOOK);
    let mut lost: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = look.tick() => {
                if index(interface).is_ok_and(|ifindex| ifindex == attached.ifindex) {
                    lost = None;
                    continue;
                }
                // The old link went with the old interface; if that merely moved away, nothing is to be done there any more.
                if let Some(link) = attached.link.take() {
                    let _ = program.detach(link);
                    eprintln!("warning: {interface} is not what it was: attaching again");
                }
                match attach(program, interface, mode) {
                    Ok(again) => {
                        println!("decapsulating on {interface} again ({})", again.got);
                        attached = again;
                        lost = None;
                        // Its addresses may be others now.
                        refresh.reset_immediately();
                    }
                    Err(error) => {
                        let since = *lost.get_or_insert_with(Instant::now);
                        if since.elapsed() >= PATIENCE {
                            return Err(error.context(format!(
                                "nothing has been decapsulated on {interface} for {}s: its interface went away, and no other \
                                 could be attached to",
                                PATIENCE.as_secs()
                            )));
                        }
                    }
                }
            }
            _ = refresh.tick(), if lost.is_none() && allow.is_empty() => {
                match wanted(interface, &allow).await {
                    Ok(addresses) if addresses != current => {
                        set(&mut allowed, &current, &addresses)?;
                        println!("now for {}", list(&addresses));
                        current = addresses;
                    }
                    Ok(_) => {}
                    // What was allowed stays allowed.
                    Err(error) => eprintln!("warning: {error:#}"),
                }
            }
        }
    }
    for (kind, name) in Decapped::ALL {
        let packets: u64 = counters.get(&(kind as u32), 0)?.iter().sum();
        println!("{name}: {packets} packets");
    }
    Ok(())
}

async fn wanted(interface: &str, allow: &[IpAddr]) -> Result<Vec<IpAddr>> {
    if !allow.is_empty() {
        return Ok(allow.to_vec());
    }
    let mut addresses = crate::netlink::interface_addresses(index(interface)?).await?;
    addresses.sort();
    anyhow::ensure!(
        !addresses.is_empty(),
        "{interface} has no address: give it one, or name outer destinations with --allow"
    );
    Ok(addresses)
}

/// Addresses the program looks up.
type List = HashMap<MapData, Key, u64>;

fn take_list(ebpf: &mut Ebpf, name: &str) -> Result<List> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the object has no list {name}"))?;
    Ok(HashMap::try_from(map)?)
}

fn set(list: &mut List, old: &[IpAddr], new: &[IpAddr]) -> Result<()> {
    for address in new {
        list.insert(key(&Address::from(*address)), 1, 0)
            .context("the allow-list is full (256 addresses)")?;
    }
    for address in old.iter().filter(|address| !new.contains(address)) {
        list.remove(&key(&Address::from(*address)))?;
    }
    Ok(())
}

/// Where the program sits. The link is taken out when the interface is gone.
struct Attached {
    ifindex: u32,
    link: Option<XdpLinkId>,
    got: XdpMode,
}

fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface).map_err(|_| {
        anyhow!("interface {interface:?} does not exist here: `ip link` lists those that do")
    })
}

fn attach(program: &mut Xdp, interface: &str, mode: XdpMode) -> Result<Attached> {
    // Should the interface be replaced in between, the next look finds another index than this one.
    let ifindex = index(interface)?;
    let native = match mode {
        XdpMode::Generic => None,
        XdpMode::Auto | XdpMode::Native => Some(program.attach(interface, Flags::Driver)),
    };
    let (link, got) = match native {
        Some(Ok(link)) => (link, XdpMode::Native),
        Some(Err(error)) if mode == XdpMode::Native => {
            return Err(anyhow!(error)).with_context(|| {
                format!("{interface}: native XDP is refused; try --xdp-mode generic")
            });
        }
        Some(Err(_)) | None => {
            let link = program.attach(interface, Flags::Skb).with_context(|| {
                format!("{interface}: XDP is refused (is another XDP program attached? `ip link` shows it)")
            })?;
            (link, XdpMode::Generic)
        }
    };
    Ok(Attached {
        ifindex,
        link: Some(link),
        got,
    })
}

fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(IpAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
