//! `sluice decap`: our decapsulator on a backend that has no tunnel device.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode as Flags;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::names;
use lb_common::address::Address;
use lb_common::decap::Decapped;
use tokio::signal::unix::{SignalKind, signal};

use super::objects;
use crate::model::XdpMode;

/// How often the interface's addresses are read again.
const REFRESH: Duration = Duration::from_secs(5);

/// Loads the decapsulator's object and maps; its program is not yet given to the verifier.
///
/// # Errors
/// What the kernel said: usually that the caller is not root.
pub fn load() -> Result<Ebpf> {
    EbpfLoader::new().load(objects::DECAP).context("the decapsulator could not be loaded (run as root)")
}

/// Attaches the decapsulator and runs until SIGTERM or SIGINT; then it is gone again.
///
/// `allow`: outer destinations to take; empty: the interface's own addresses, kept current.
pub async fn run(interface: &str, mode: XdpMode, allow: Vec<IpAddr>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ebpf = load()?;
    let mut allowed: HashMap<MapData, [u64; 2], u64> =
        HashMap::try_from(ebpf.take_map(names::DECAP_ALLOWED).context("the object has no allow-list")?)?;
    let counters: PerCpuArray<MapData, u64> =
        PerCpuArray::try_from(ebpf.take_map(names::DECAP_COUNTERS).context("the object has no counters")?)?;

    let current = wanted(interface, &allow).await?;
    set(&mut allowed, &[], &current)?;

    let program: &mut Xdp = ebpf.program_mut(names::DECAP).context("the object has no program")?.try_into()?;
    program.load().context("the kernel refuses the decapsulator")?;
    let got = attach(program, interface, mode)?;
    println!("decapsulating on {interface} ({got}) for {}", list(&current));

    let mut current = current;
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = refresh.tick(), if allow.is_empty() => {
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
    let mut addresses = crate::netlink::interface_addresses(interface).await?;
    addresses.sort();
    anyhow::ensure!(!addresses.is_empty(), "{interface} has no address: give it one, or name outer destinations with --allow");
    Ok(addresses)
}

fn set(map: &mut HashMap<MapData, [u64; 2], u64>, old: &[IpAddr], new: &[IpAddr]) -> Result<()> {
    for address in new {
        map.insert(Address::from(*address).words, 1, 0).context("the allow-list is full (256 addresses)")?;
    }
    for address in old.iter().filter(|address| !new.contains(address)) {
        map.remove(&Address::from(*address).words)?;
    }
    Ok(())
}

fn attach(program: &mut Xdp, interface: &str, mode: XdpMode) -> Result<XdpMode> {
    let native = match mode {
        XdpMode::Generic => None,
        XdpMode::Auto | XdpMode::Native => Some(program.attach(interface, Flags::Driver)),
    };
    match native {
        Some(Ok(_)) => return Ok(XdpMode::Native),
        Some(Err(error)) if mode == XdpMode::Native => {
            return Err(anyhow!(error)).with_context(|| format!("{interface}: native XDP is refused; try --xdp-mode generic"));
        }
        Some(Err(_)) | None => {}
    }
    program
        .attach(interface, Flags::Skb)
        .with_context(|| format!("{interface}: XDP is refused (is another XDP program attached? `ip link` shows it)"))?;
    Ok(XdpMode::Generic)
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}
