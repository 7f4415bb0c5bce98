//! What the laboratory does to single network interfaces: offloads, the XDP_PASS program, raw frames, reading modes.
//!
//! Every function works on the calling thread's network namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netns::Namespace;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Turns off what would let a frame leave with an unfinished checksum or bigger than the link allows: an XDP program
/// sees the frame as it is, and a checksum left "for the hardware" would be wrong after encapsulation.
pub fn disable_offloads(name: &str) -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    for command in [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO, ETHTOOL_STXCSUM] {
        let mut value = EthtoolValue { command, data: 0 };
        // SAFETY: ifreq is plain data for which all-zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        copy_name(name, &mut request.ifr_name);
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request and the value it points to live across the call; the kernel reads 8 bytes of the value.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot turn off offload {command:#x} of {name}"));
        }
    }
    Ok(())
}

/// The interface's number.
pub fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .with_context(|| format!("no interface {name} in this namespace"))
}

fn copy_name(name: &str, target: &mut [libc::c_char; libc::IFNAMSIZ]) {
    for (to, from) in target.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
}

/// A program that passes every frame, attached natively while this value lives.
///
/// veth delivers XDP_TX and XDP_REDIRECT frames only to a peer whose receive side is set up for XDP; the smallest
/// way to set it up is a program of two instructions.
pub struct XdpPass {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl XdpPass {
    pub fn attach(interface: &str) -> Result<Self> {
        let program = load_pass().context("cannot load the XDP_PASS program")?;
        let link = bpf(
            BPF_LINK_CREATE,
            &LinkCreate {
                program: program.as_raw_fd(),
                ifindex: index(interface)?,
                attach_type: BPF_XDP,
                flags: XDP_FLAGS_DRV_MODE,
            },
        )
        .with_context(|| format!("cannot attach the XDP_PASS program to {interface}"))?;
        Ok(Self {
            _program: program,
            _link: link,
        })
    }
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_PASS: u64 = 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn load_pass() -> io::Result<OwnedFd> {
    // `struct bpf_insn`, little-endian: opcode, registers, offset, immediate.
    let instructions: [u64; 2] = [
        0xb7 | (XDP_PASS << 32), // r0 = XDP_PASS
        0x95,                    // exit
    ];
    let license = c"GPL";
    bpf(
        BPF_PROG_LOAD,
        &ProgramLoad {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
        },
    )
}

/// A bpf(2) command that returns a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a `repr(C)` head of `union bpf_attr` with its true size; what it points to (see
    // `load_pass`) lives across the call. On success the kernel returns a descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            command,
            attributes as *const T,
            size_of::<T>(),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// How an XDP program is attached to an interface, as the kernel tells it: `native`, `generic`, or not at all.
pub fn xdp_mode(namespace: &Namespace, interface: &str) -> Result<Option<&'static str>> {
    // include/uapi/linux/if_link.h: XDP_ATTACHED_DRV = 1, XDP_ATTACHED_SKB = 2.
    Ok(match xdp_details(namespace, interface)?["mode"].as_u64() {
        Some(1) => Some("native"),
        Some(2) => Some("generic"),
        _ => None,
    })
}

/// A program in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Of this very loading.
    pub id: u32,
    /// A hash over its instructions: another one is another program.
    pub tag: u64,
}

/// The XDP program attached to an interface; an error if there is none.
pub fn xdp_program(namespace: &Namespace, interface: &str) -> Result<XdpProgram> {
    let details = xdp_details(namespace, interface)?;
    let id = details["prog"]["id"]
        .as_u64()
        .with_context(|| format!("no XDP program on {interface} in {}", namespace.name()))?;
    for program in loaded_programs() {
        let program = program?;
        if u64::from(program.id()) == id {
            return Ok(XdpProgram {
                id: program.id(),
                tag: program.tag(),
            });
        }
    }
    anyhow::bail!("program {id} on {interface} is no longer in the kernel")
}

/// What `ip` says of XDP on an interface; null when there is none.
fn xdp_details(namespace: &Namespace, interface: &str) -> Result<serde_json::Value> {
    let output = namespace
        .command("ip")
        .args(["-json", "-details", "link", "show", "dev", interface])
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "ip link show {interface} in {}: {}",
        namespace.name(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(links[0]["xdp"].take())
}

/// Puts one Ethernet frame on the wire exactly as it is.
pub fn send_frame(interface: &str, frame: &[u8]) -> Result<()> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = link_address(index(interface)?, 0);
    // SAFETY: frame and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent != frame.len() as isize {
        return Err(io::Error::last_os_error()).with_context(|| {
            format!(
                "cannot send a frame of {} bytes on {interface}",
                frame.len()
            )
        });
    }
    Ok(())
}

/// The address of an interface for AF_PACKET sockets; `protocol` as in `ETH_P_*`.
fn link_address(ifindex: u32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Lets everything that passes an interface, either way, into an AF_PACKET socket.
pub(crate) fn bind_packet_socket(socket: &OwnedFd, interface: &str) -> Result<()> {
    let address = link_address(index(interface)?, libc::ETH_P_ALL as u16);
    // SAFETY: the call reads a plain structure of the size given.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("cannot bind the packet socket");
    }
    Ok(())
}

/// Whether this process may do what the laboratory needs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
