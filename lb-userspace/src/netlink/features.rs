//! Which interfaces can transmit XDP frames, as the kernel's `netdev` generic-netlink family tells it (since 6.3).
//!
//! Owns: that one question and its message format, written by hand as it is one request and three attributes. Older
//! kernels have no such family; what is then known is in [`super::kernel`] (the kind of link).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::XdpTransmit;

/// `struct nlmsghdr` and `struct genlmsghdr` behind it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// The controller, which knows the families by name (include/uapi/linux/genetlink.h).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// include/uapi/linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// The kernel answers while the request is being sent; this only bounds what must not happen.
const PATIENCE: Duration = Duration::from_secs(1);
/// More parts than an answer of any host has.
const PARTS: usize = 10_000;

/// A socket for the question, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Features {
    socket: OwnedFd,
    family: u16,
}

impl Features {
    /// `None` where the kernel has no such family (before 6.3).
    pub fn open() -> Option<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .ok()?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).ok()?;
        let patience = TimeVal::new(PATIENCE.as_secs() as _, 0);
        setsockopt(&socket, ReceiveTimeout, &patience).ok()?;
        let mut name = attribute_header(CTRL_ATTR_FAMILY_NAME, 7).to_vec();
        name.extend(b"netdev\0\0");
        let answer = ask(
            &socket,
            GENL_ID_CTRL,
            NLM_F_REQUEST,
            CTRL_CMD_GETFAMILY,
            &name,
        )
        .ok()?;
        let family = answer.first()?.get(&CTRL_ATTR_FAMILY_ID)?;
        let family = u16::from_ne_bytes(family.as_slice().try_into().ok()?);
        Some(Self { socket, family })
    }

    /// Every interface of the namespace, by index.
    pub fn all(&self) -> io::Result<HashMap<u32, XdpTransmit>> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let answers = ask(&self.socket, self.family, flags, NETDEV_CMD_DEV_GET, &[])?;
        let one = |attributes: &Attributes| {
            let index = attributes.get(&NETDEV_A_DEV_IFINDEX)?.as_slice();
            let features = attributes.get(&NETDEV_A_DEV_XDP_FEATURES)?.as_slice();
            let features = u64::from_ne_bytes(features.try_into().ok()?);
            Some((u32::from_ne_bytes(index.try_into().ok()?), read(features)))
        };
        Ok(answers.iter().filter_map(one).collect())
    }
}

/// The kernel refuses a frame for a device without NDO_XMIT. Most drivers set it only while a program is attached
/// to the interface; one that runs no XDP natively never will.
const fn read(features: u64) -> XdpTransmit {
    if features & NETDEV_XDP_ACT_NDO_XMIT != 0 {
        XdpTransmit::Yes
    } else if features & NETDEV_XDP_ACT_BASIC != 0 {
        XdpTransmit::WithProgram
    } else {
        XdpTransmit::No
    }
}

/// The attributes of one message, by type.
type Attributes = HashMap<u16, Vec<u8>>;

fn ask(
    socket: &OwnedFd,
    family: u16,
    flags: u16,
    command: u8,
    attributes: &[u8],
) -> io::Result<Vec<Attributes>> {
    let mut request = Vec::with_capacity(HEADERS + attributes.len());
    request.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence and port: one question at a time, and the kernel fills in the port.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    let fd = socket.as_raw_fd();
    sendto(fd, &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

    let mut answers = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..PARTS {
        let length = recv(fd, &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|code| code.try_into().ok());
                    let code = code.map_or(libc::EBADMSG, |code| -i32::from_ne_bytes(code));
                    return Err(io::Error::from_raw_os_error(code));
                }
                kind if kind == family => {
                    answers.push(read_attributes(body.get(4..).unwrap_or_default()));
                    if flags & NLM_F_DUMP == 0 {
                        return Ok(answers);
                    }
                }
                _ => {}
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBADMSG))
}

/// Type and body of each message in a datagram.
fn messages(datagram: &[u8]) -> Vec<(u16, &[u8])> {
    pieces(datagram, |header| {
        let length = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
        Some((length, HEADER, kind))
    })
}

fn read_attributes(body: &[u8]) -> Attributes {
    // The two top bits of a type are flags.
    pieces(body, |header| {
        let length = u16::from_ne_bytes(header.get(..2)?.try_into().ok()?).into();
        let kind = u16::from_ne_bytes(header.get(2..4)?.try_into().ok()?);
        Some((length, 4, kind & 0x3fff))
    })
    .into_iter()
    .map(|(kind, value)| (kind, value.to_vec()))
    .collect()
}

/// What stands one behind the other, padded to four bytes: `head` reads length, size of the header, and type.
fn pieces(
    mut rest: &[u8],
    head: impl Fn(&[u8]) -> Option<(usize, usize, u16)>,
) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((length, header, kind)) = head(rest) {
        let Some(body) = rest.get(header..length) else {
            break;
        };
        found.push((kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attribute_header(kind: u16, length: u16) -> [u8; 4] {
    let [a, b] = (length + 4).to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_xdp_without_transmitting_may_transmit_with_a_program() {
        assert_eq!(read(0), XdpTransmit::No);
        assert_eq!(read(0x3), XdpTransmit::WithProgram);
        assert_eq!(read(0x7), XdpTransmit::Yes);
    }

    #[test]
    fn cut_answers_end_the_reading() {
        let whole = [
            &attribute_header(3, 2)[..],
            &[1, 2, 0, 0],
            &attribute_header(4, 4),
            &[9; 4],
        ];
        let whole = whole.concat();
        let read = read_attributes(&whole);
        assert_eq!((read[&3].as_slice(), read[&4].len()), (&[1, 2][..], 4));
        for length in 0..whole.len() {
            assert!(read_attributes(&whole[..length]).len() < 2);
        }
        assert!(read_attributes(&[0; 64]).is_empty());
    }

    /// Loopback is in every namespace, and transmits no XDP frames.
    #[test]
    fn loopback_is_listed() {
        let Some(features) = Features::open() else {
            eprintln!("skipped: this kernel has no netdev family");
            return;
        };
        assert_eq!(features.all().unwrap().get(&1), Some(&XdpTransmit::No));
    }
}
