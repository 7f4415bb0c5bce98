//! Single packets through the loaded program by BPF_PROG_TEST_RUN, for tests of the kernel's data plane.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use lb_common::abi::Route;
use lb_common::checksum;
use lb_common::encap::Way;
use lb_common::service::Echo;
use lb_common::track::Status;
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::model::{Affinity, OnEmpty, Protocol, ServiceKey, TableSize, Tracking};
use lb_userspace::plan::{DesiredBackend, DesiredService};

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
/// Test packets come in by the loopback interface; a route through it is XDP_TX.
pub const LOOPBACK: u32 = 1;

/// The program by a descriptor of its own, so that packets run while the plane is changed.
pub struct Program(OwnedFd);

/// What BPF_PROG_TEST_RUN reads and writes: the head of `union bpf_attr` (linux/bpf.h, struct `test`).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    action: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context: [u32; 2],
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

impl Program {
    pub fn of(plane: &mut KernelDataPlane) -> Self {
        let fd = plane.program().fd().expect("it is loaded");
        Self(fd.as_fd().try_clone_to_owned().expect("a descriptor"))
    }

    /// Runs one packet; the verdict and the packet as it leaves.
    pub fn run<'a>(&self, packet: &[u8], out: &'a mut [u8; 256]) -> (u32, &'a [u8]) {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        let mut attr = TestRun {
            program: self.0.as_raw_fd() as u32,
            size_in: packet.len() as u32,
            size_out: out.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        // SAFETY: both buffers live through the call and are as long as said; the kernel writes `attr` and `out` only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attr,
                size_of::<TestRun>(),
            )
        };
        assert_eq!(result, 0, "test run: {}", io::Error::last_os_error());
        (attr.action, &out[..attr.size_out as usize])
    }
}

pub fn key(n: u16) -> ServiceKey {
    ServiceKey {
        vip: IpAddr::from([203, 0, (n >> 8) as u8, n as u8]),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

/// A TCP SYN to the service.
pub fn packet(key: &ServiceKey, client: u8) -> Vec<u8> {
    let IpAddr::V4(vip) = key.vip else {
        panic!("services here are IPv4")
    };
    let mut packet = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0];
    packet.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([198, 51, 100, client]);
    packet.extend(vip.octets());
    packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0]);
    packet.extend([0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

/// A route of which every byte that can be chosen says `mark`.
pub fn route(mark: u8) -> Route {
    let way = Way {
        ifindex: LOOPBACK,
        mtu: 1_500,
        source_mac: [mark; 6],
        destination_mac: [mark; 6],
    };
    let address = IpAddr::from([mark; 4]);
    Route::ipip(&way, false, address, address).expect("one family")
}

/// The mark of a whole, valid outer header; anything else is a mixture.
pub fn mark(packet: &[u8]) -> Result<u8, String> {
    let header = packet.get(..34).ok_or("too short")?;
    let mark = header[0];
    let marked = [&header[..12], &header[26..34]].concat();
    let mut ip: [u8; 20] = header[14..34].try_into().expect("20 bytes");
    let stated = u16::from_be_bytes([ip[10], ip[11]]);
    ip[10..12].fill(0);
    let valid = checksum::finish(checksum::sum(&ip)) == stated;
    if valid && ip[9] == 4 && marked.iter().all(|b| *b == mark) {
        Ok(mark)
    } else {
        Err(format!("a torn header: {header:02x?}"))
    }
}

/// A service with these backends, all of one weight and eligible; their routes are marked with their numbers.
pub fn desired(
    key: ServiceKey,
    size: TableSize,
    backends: impl IntoIterator<Item = u8>,
) -> DesiredService {
    let backend = |n| DesiredBackend {
        address: IpAddr::from([10, 0, 0, n]),
        identity: IpAddr::from([10, 0, 0, n]),
        weight: 1,
        eligible: true,
        status: Status::Active,
        lingers: false,
        only_down: false,
        may_keep: true,
        route: Some(route(n)),
    };
    DesiredService {
        key,
        affinity: Affinity::FiveTuple,
        tracking: Tracking::Adaptive,
        flow_idle: 1_734,
        table_size: size,
        on_empty: OnEmpty::Keep,
        echo: Echo::default(),
        backends: backends.into_iter().map(backend).collect(),
    }
}
