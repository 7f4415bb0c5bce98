//! Counting frames on an interface without reading them: the kernel filters and counts, so that a minute of thousands of frames
//! a second costs next to nothing and none can be missed. `capture` is for looking into them.
//!
//! Owns: the packet socket, its filter and its statistics. IPv4 only: a client's packet bare, or in an IP-in-IP header.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use crate::addresses::address;
use crate::interface::bind_packet_socket;
use crate::netns::Namespace;
use crate::packet::{IPPROTO_TCP, IPPROTO_UDP};

/// Which outgoing frames are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// TCP and UDP to a VIP, as a client sent it.
    ToVip,
    /// One protocol inside an IP-in-IP header, as a balancer sent it: `IPPROTO_TCP` or `IPPROTO_UDP` of [`crate::packet`].
    Encapsulated(u8),
}

/// A running count of the frames that leave by an interface.
pub struct Tally {
    socket: OwnedFd,
    seen: AtomicU64,
}

impl Tally {
    /// Frames sent after this returns are counted.
    pub fn start(namespace: &Namespace, interface: &str, wanted: Wanted) -> Result<Self> {
        let socket = namespace.run(|| open(interface, wanted)).with_context(|| {
            format!("cannot count frames on {interface} in {}", namespace.name())
        })?;
        Ok(Self {
            socket,
            seen: AtomicU64::new(0),
        })
    }

    /// Frames so far.
    pub fn seen(&self) -> Result<u64> {
        // Asking sets the kernel's count back to zero.
        let new = u64::from(count(&self.socket)?);
        Ok(self.seen.fetch_add(new, Ordering::Relaxed) + new)
    }
}

fn open(interface: &str, wanted: Wanted) -> Result<OwnedFd> {
    // Protocol 0: nothing arrives before the socket is bound to the interface, the filter in place.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // The smallest there is: what does not fit is counted all the same, and nobody reads.
    setsockopt(&socket, sockopt::RcvBuf, &0).context("cannot shrink the receive buffer")?;
    let mut filter = filter(wanted);
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the call reads a structure of the size given, and the filter it points to; both live across it.
    unsafe {
        if libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        ) != 0
        {
            return Err(io::Error::last_os_error()).context("cannot attach the filter");
        }
    }
    bind_packet_socket(&socket, interface)?;
    Ok(socket)
}

/// Frames that the filter let through since the last call, kept or not.
fn count(socket: &OwnedFd) -> Result<u32> {
    // SAFETY: tpacket_stats is plain data; the kernel writes at most the length given.
    unsafe {
        let mut statistics: libc::tpacket_stats = std::mem::zeroed();
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        );
        if result != 0 {
            return Err(io::Error::last_os_error())
                .context("cannot read the packet socket's statistics");
        }
        // `tp_packets` includes those that did not fit.
        Ok(statistics.tp_packets)
    }
}

const ETHERTYPE: u32 = 12;
const IP: u32 = 14;
/// An IPv4 header without options: neither the laboratory's clients nor the balancer send any.
const IP_LENGTH: u32 = 20;
const PROTOCOL: u32 = 9;
const DESTINATION: u32 = 16;

/// The filter in classic BPF: a row of tests, all of which a frame has to pass.
fn filter(wanted: Wanted) -> Vec<libc::sock_filter> {
    let mut tests = vec![
        // Ancillary data of the frame: which way it crosses the interface.
        Test {
            load: libc::BPF_W,
            at: (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32,
            mask: u32::MAX,
            any_of: vec![u32::from(libc::PACKET_OUTGOING)],
        },
        Test {
            load: libc::BPF_H,
            at: ETHERTYPE,
            mask: u32::MAX,
            any_of: vec![libc::ETH_P_IP as u32],
        },
    ];
    let protocol = |at, any_of: &[u8]| Test {
        load: libc::BPF_B,
        at,
        mask: u32::MAX,
        any_of: any_of.iter().copied().map(u32::from).collect(),
    };
    match wanted {
        Wanted::ToVip => {
            tests.push(protocol(IP + PROTOCOL, &[IPPROTO_TCP, IPPROTO_UDP]));
            tests.push(Test {
                load: libc::BPF_W,
                at: IP + DESTINATION,
                mask: 0xffff_ff00,
                any_of: vec![address::vip_v4(0).to_bits() & 0xffff_ff00],
            });
        }
        Wanted::Encapsulated(inner) => {
            tests.push(protocol(IP + PROTOCOL, &[libc::IPPROTO_IPIP as u8]));
            tests.push(protocol(IP + IP_LENGTH + PROTOCOL, &[inner]));
        }
    }
    let mut program: Vec<_> = tests.iter().flat_map(Test::instructions).collect();
    // How many bytes to keep of a frame: any but zero counts it.
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 1));
    program
}

/// Loads a field and compares it; a frame that is none of `any_of` is refused on the spot.
struct Test {
    /// Width of the field.
    load: u32,
    at: u32,
    mask: u32,
    any_of: Vec<u32>,
}

impl Test {
    fn instructions(&self) -> Vec<libc::sock_filter> {
        let mut program = vec![
            instruction(libc::BPF_LD | self.load | libc::BPF_ABS, 0, 0, self.at),
            instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, self.mask),
        ];
        for (i, value) in self.any_of.iter().enumerate() {
            // Over the comparisons that are left, and over the refusal.
            let found = (self.any_of.len() - i) as u8;
            program.push(instruction(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                found,
                0,
                *value,
            ));
        }
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
        program
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
