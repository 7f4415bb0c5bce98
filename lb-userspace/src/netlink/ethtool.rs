//! The two questions Sluice asks of `SIOCETHTOOL`: which driver, and which offloads.
//!
//! sysfs could answer the first, but it shows the interfaces of the namespace in which it was mounted, not those of
//! the caller's.

use std::ffi::{c_char, c_void};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Name of the interface's driver, for example `ixgbe`, `virtio_net`, `veth`.
pub fn driver(interface: &str) -> Option<String> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        expansion_rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    ask(interface, (&raw mut info).cast())?;
    let name = info.driver.split(|&byte| byte == 0).next()?;
    let name = String::from_utf8_lossy(name).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether large receive offload is on; `None` when the interface cannot say.
pub fn large_receive_offload(interface: &str) -> Option<bool> {
    let mut value = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    ask(interface, (&raw mut value).cast())?;
    Some(value.data & ETH_FLAG_LRO != 0)
}

/// `question` must point to the structure that its first word, the command, asks for.
fn ask(interface: &str, question: *mut c_void) -> Option<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    // SAFETY: an all-zero `ifreq` is valid: it is integers, bytes, and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: the name is a C string.
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = question.cast();
    // SAFETY: `request` lives through the call and its data points to a structure of the size the command writes
    // (both callers pass the one that belongs to their command).
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then_some(())
}
