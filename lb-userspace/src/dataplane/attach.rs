//! XDP programs on interfaces: attached through links that are pinned in bpffs, so that the data path outlives the daemon, and
//! replaced atomically.
//!
//! A pin is named `<program>-<mode>-<ifindex>` (bpffs refuses dots, so not the interface's name).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as Flags};
use aya::programs::{ProgramError, Xdp};
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::pins::prepare;
use crate::model::XdpMode;

/// How long a link that was unpinned may take to go.
const LEAVING: Duration = Duration::from_secs(1);

/// Where and how a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    pub ifindex: u32,
    pub asked: XdpMode,
    /// Native or generic, never auto.
    pub got: XdpMode,
    /// Why generic, when native was tried.
    pub note: Option<String>,
    /// The link's pin: without it nothing is attached.
    pin: PathBuf,
}

impl Attachment {
    /// Whether it still holds. An interface that was made again has no program; a pin that somebody removed took it off.
    pub fn stands(&self) -> bool {
        if_nametoindex(self.interface.as_str()) == Ok(self.ifindex) && self.pin.exists()
    }
}

/// Attaches a loaded program to an interface, or puts it in the place of the one that a pinned link holds.
pub fn attach(
    program: &mut Xdp,
    interface: &str,
    mode: XdpMode,
    directory: &Path,
    prefix: &str,
) -> Result<Attachment> {
    prepare(directory)?;
    let ifindex = if_nametoindex(interface).map_err(|_| {
        anyhow!("interface {interface:?} does not exist here: `ip link` lists those that do; correct node.interfaces")
    })?;
    let attachment = |got, note| Attachment {
        interface: interface.to_owned(),
        ifindex,
        asked: mode,
        got,
        note,
        pin: pin_path(directory, prefix, got, ifindex),
    };
    let mut displaced = None;
    for got in [XdpMode::Native, XdpMode::Generic] {
        let pin = pin_path(directory, prefix, got, ifindex);
        if !pin.exists() {
            continue;
        }
        if mode == XdpMode::Auto || mode == got {
            match replace(program, &pin) {
                Ok(()) => return Ok(attachment(got, None)),
                Err(error) => tracing::warn!(
                    "{}: the pinned link is dead ({error:#}); attaching anew",
                    pin.display()
                ),
            }
        }
        // An interface takes programs of one mode only.
        fs::remove_file(&pin).with_context(|| format!("{}", pin.display()))?;
        displaced = Some(got);
    }
    let mut refused = None;
    if mode != XdpMode::Generic {
        match attach_new(
            program,
            interface,
            Flags::Driver,
            &pin_path(directory, prefix, XdpMode::Native, ifindex),
            displaced.is_some(),
        ) {
            Ok(()) => return Ok(attachment(XdpMode::Native, None)),
            // What was forwarding goes on.
            Err(error) if mode == XdpMode::Native && displaced == Some(XdpMode::Generic) => {
                refused = Some(format!(
                    "native XDP is asked for and refused ({error:#}), so the generic mode stays"
                ));
            }
            Err(error) if mode == XdpMode::Native => {
                return Err(error.context(format!(
                    "{interface}: native XDP was asked for and is refused; xdp_mode = \"auto\" or \"generic\" may work"
                )));
            }
            Err(error) => refused = Some(format!("native XDP refused: {error:#}")),
        }
    }
    attach_new(
        program,
        interface,
        Flags::Skb,
        &pin_path(directory, prefix, XdpMode::Generic, ifindex),
        displaced.is_some(),
    )
    .with_context(|| format!("{interface}: generic XDP"))?;
    Ok(attachment(XdpMode::Generic, refused))
}

/// Takes off whatever is pinned in `directory` for interfaces that are not in `keep`.
pub fn detach_others(directory: &Path, prefix: &str, keep: &[u32]) -> Result<Vec<String>> {
    let mut freed = Vec::new();
    for (pin, ifindex) in pins(directory, prefix)? {
        if !keep.contains(&ifindex) {
            fs::remove_file(&pin).with_context(|| format!("{}", pin.display()))?;
            freed.push(name(ifindex));
        }
    }
    Ok(freed)
}

/// Prefix of the balancer's pins.
pub const BALANCER_PREFIX: &str = "balancer";

fn pin_path(directory: &Path, prefix: &str, mode: XdpMode, ifindex: u32) -> PathBuf {
    directory.join(format!("{prefix}-{mode}-{ifindex}"))
}

/// Whether a program of this prefix is pinned: one that may be forwarding.
pub fn is_pinned(directory: &Path, prefix: &str) -> bool {
    pins(directory, prefix).is_ok_and(|pins| !pins.is_empty())
}

/// The pins of a program: path and interface index.
fn pins(directory: &Path, prefix: &str) -> Result<Vec<(PathBuf, u32)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}", directory.display())),
    };
    let mut pins = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let ifindex = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| {
                name.strip_prefix(prefix)?
                    .strip_prefix('-')?
                    .rsplit_once('-')?
                    .1
                    .parse()
                    .ok()
            });
        if let Some(ifindex) = ifindex {
            pins.push((path, ifindex));
        }
    }
    Ok(pins)
}

fn name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        Ok(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => format!("interface {ifindex} (gone)"),
    }
}

/// Whether there is an interface of this index.
pub(super) fn exists(ifindex: u32) -> bool {
    if_indextoname(ifindex).is_ok_and(|name| !name.is_empty())
}

/// Atomic: each packet meets the old program or the new one.
fn replace(program: &mut Xdp, pin: &Path) -> Result<()> {
    let link: FdLink = PinnedLink::from_pin(pin)?.into();
    let link = XdpLink::try_from(link)?;
    let id = program.attach_to_link(link)?;
    // Only the pin keeps it attached from here on; dropping our descriptor takes nothing off.
    drop(FdLink::try_from(program.take_link(id)?)?);
    Ok(())
}

/// `leaving`: a link of ours was just unpinned, which the kernel frees behind our back.
fn attach_new(
    program: &mut Xdp,
    interface: &str,
    flags: Flags,
    pin: &Path,
    leaving: bool,
) -> Result<()> {
    let began = Instant::now();
    let id = loop {
        match program.attach(interface, flags) {
            Ok(id) => break id,
            Err(error) if leaving && is_taken(&error) && began.elapsed() < LEAVING => {
                std::thread::sleep(LEAVING / 200);
            }
            Err(error) => return Err(explain(error)),
        }
    };
    let link = program.take_link(id)?;
    // aya falls back to netlink where the kernel says EINVAL; that attachment could not be pinned, and would die with us.
    let Ok(link) = FdLink::try_from(link) else {
        bail!("the kernel gives no link for XDP here (5.9 or newer is needed)")
    };
    link.pin(pin)
        .with_context(|| format!("pin {}", pin.display()))?;
    Ok(())
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        _ => None,
    }
}

/// Whether another program is attached.
fn is_taken(error: &ProgramError) -> bool {
    matches!(errno(error), Some(libc::EBUSY | libc::EEXIST))
}

fn explain(error: ProgramError) -> anyhow::Error {
    match errno(&error) {
        Some(libc::EBUSY | libc::EEXIST) => anyhow!(
            "another XDP program is attached there already: `ip link` shows its id; take it off with what attached it \
             (another sluice: `sluice detach`; else `bpftool link` finds and detaches it)"
        ),
        Some(libc::EOPNOTSUPP) => anyhow!("the driver does not do it"),
        Some(libc::EPERM) => {
            anyhow!("not permitted: run as root, or with CAP_BPF and CAP_NET_ADMIN")
        }
        _ => {
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text.push_str(&format!(": {source}"));
            }
            anyhow!(text)
        }
    }
}
