//! Seeing frames on an interface without help from the balancer: AF_PACKET, lossless or an error.
//!
//! Owns: the packet socket and the thread that empties it. Where to capture matters: on the *router's* port towards a
//! backend, outgoing frames are still encapsulated; inside the backend the decapsulator has run before any packet
//! socket sees them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use std::os::fd::AsFd;

use crate::interface::bind_packet_socket;
use crate::netns::Namespace;
use crate::packet::{ETHERTYPE_VLAN, Ethernet};

/// Enough for every frame of a suite even if the reading thread does not run for a while.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Frames kept in memory at most; a capture that would keep more is an error, not a slow death.
const MAX_KEPT: usize = 2_000_000;
const LARGEST_FRAME: usize = 65_536;

/// Which way frames cross the interface, as seen from its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

/// One frame with its VLAN tag put back, and when it was read.
#[derive(Clone, Debug)]
pub struct Frame {
    pub at: Instant,
    pub bytes: Vec<u8>,
}

impl Frame {
    pub fn ethernet(&self) -> Option<Ethernet<'_>> {
        Ethernet::parse(&self.bytes)
    }
}

/// A running capture.
pub struct Capture {
    interface: String,
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Vec<Frame>>>>,
}

impl Capture {
    /// Starts keeping the frames that cross `interface` in `direction` and that `wanted` accepts. Frames sent after
    /// this returns are seen.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        direction: Direction,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        Self::start_each(namespace, interface, direction, move |frame, kept| {
            let wanted = wanted(frame);
            if wanted {
                kept.push(Frame {
                    at: Instant::now(),
                    bytes: frame.to_vec(),
                });
            }
            wanted
        })
    }

    /// Only counts: `wanted` is called for every frame, nothing is kept.
    pub fn count(
        namespace: &Namespace,
        interface: &str,
        direction: Direction,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        Self::start_each(namespace, interface, direction, move |frame, _| {
            wanted(frame)
        })
    }

    fn start_each(
        namespace: &Namespace,
        interface: &str,
        direction: Direction,
        each: impl Fn(&[u8], &mut Vec<Frame>) -> bool + Send + 'static,
    ) -> Result<Self> {
        let socket = namespace
            .run(|| open(interface))
            .with_context(|| format!("cannot capture on {interface} in {}", namespace.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicU64::new(0));
        let name = format!("{} in {}", interface, namespace.name());
        let reader = Reader {
            socket,
            direction,
            stop: stop.clone(),
            seen: seen.clone(),
            name,
        };
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || reader.read_all(each))?;
        Ok(Self {
            interface: interface.to_owned(),
            stop,
            seen,
            thread: Some(thread),
        })
    }

    /// Frames accepted so far.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Reads what is still queued and returns the kept frames; an error if the kernel had to drop one.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(frames)) => frames,
            _ => bail!("the capture on {} panicked", self.interface),
        }
    }

    /// Like [`Capture::stop`], returning how many frames were accepted.
    pub fn stop_counting(self) -> Result<u64> {
        let seen = self.seen.clone();
        self.stop()?;
        Ok(seen.load(Ordering::Relaxed))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader {
    socket: OwnedFd,
    direction: Direction,
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    name: String,
}

impl Reader {
    fn read_all(self, each: impl Fn(&[u8], &mut Vec<Frame>) -> bool) -> Result<Vec<Frame>> {
        let mut kept = Vec::new();
        let mut buffer = vec![0u8; LARGEST_FRAME];
        loop {
            // Read before emptying: what was queued when the flag was set is still read.
            let stopping = self.stop.load(Ordering::Relaxed);
            while let Some((length, direction)) = receive(&self.socket, &mut buffer)? {
                if direction == self.direction && each(&buffer[..length], &mut kept) {
                    self.seen.fetch_add(1, Ordering::Relaxed);
                }
                if kept.len() > MAX_KEPT {
                    bail!(
                        "more than {MAX_KEPT} frames captured on {}: narrow the filter",
                        self.name
                    );
                }
            }
            if stopping {
                break;
            }
            poll(
                &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
                PollTimeout::from(10u8),
            )?;
        }
        let drops = dropped(&self.socket)?;
        if drops > 0 {
            bail!(
                "the capture on {} lost {drops} frames: its counts would be wrong",
                self.name
            );
        }
        Ok(kept)
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    // Protocol 0: nothing arrives before the socket is bound to the interface.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("cannot enlarge the receive buffer")?;
    let one: libc::c_int = 1;
    // SAFETY: the call reads a plain value of the size given.
    unsafe {
        if libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        ) != 0
        {
            return Err(io::Error::last_os_error()).context("cannot ask for VLAN tags");
        }
    }
    bind_packet_socket(&socket, interface)?;
    Ok(socket)
}

/// One frame, or `None` when none is queued.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<(usize, Direction)>> {
    /// Control message with `struct tpacket_auxdata`, aligned as the kernel wants it.
    #[repr(C, align(8))]
    struct Control([u8; 64]);

    let mut control = Control([0; 64]);
    // Room before the frame's third field for a tag that the kernel has taken out.
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len() - 4,
    };
    // SAFETY: all-zero is valid for both plain structures.
    let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: every pointer in `message` is valid for the length beside it and outlives the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            // The interface went down (a fault the tests inject); the socket goes on afterwards.
            _ if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
            _ => Err(error).context("cannot read from the packet socket"),
        };
    }
    let mut length = length as usize;
    if let Some((protocol, tag)) = stripped_tag(&message)
        && length >= 12
    {
        buffer.copy_within(12..length, 16);
        buffer[12..14].copy_from_slice(&protocol.to_be_bytes());
        buffer[14..16].copy_from_slice(&tag.to_be_bytes());
        length += 4;
    }
    let direction = if address.sll_pkttype == libc::PACKET_OUTGOING {
        Direction::Out
    } else {
        Direction::In
    };
    Ok(Some((length, direction)))
}

/// The VLAN tag that the kernel moved out of the frame, as (protocol, tag).
fn stripped_tag(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel has filled the control buffer of `message`, which is alive; the CMSG functions walk it
    // within msg_controllen, and the data is read only when it is long enough.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            let wanted =
                control.cmsg_level == libc::SOL_PACKET && control.cmsg_type == libc::PACKET_AUXDATA;
            if wanted
                && control.cmsg_len
                    >= libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize
            {
                let auxiliary = libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned();
                let valid = auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
                let protocol = match auxiliary.tp_vlan_tpid {
                    0 => ETHERTYPE_VLAN,
                    protocol => protocol,
                };
                return valid.then_some((protocol, auxiliary.tp_vlan_tci));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// Frames that did not fit into the socket's buffer.
fn dropped(socket: &OwnedFd) -> Result<u32> {
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
        Ok(statistics.tp_drops)
    }
}

/// How long a test waits for frames that are already on their way.
pub const SETTLE: Duration = Duration::from_secs(2);
