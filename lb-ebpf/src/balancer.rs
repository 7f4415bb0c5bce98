//! The load balancer's XDP program: translates between the kernel and `lb_common::process`, which decides.
//!
//! Owns: the maps and the entry point. Does not own: any rule about packets.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod frame;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::Global;
    use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
    use aya_ebpf::helpers::bpf_get_smp_processor_id;
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{Array, DevMapHash};
    use aya_ebpf::programs::XdpContext;
    use aya_log_ebpf::warn;
    use lb_common::abi::{Backend, BackendCounters, Node, ServiceBucket, control};
    use lb_common::packet::Frame as _;
    use lb_common::process::{Forwarded, Tables, Verdict, process};
    use lb_common::reason::{Fate, REASONS, Reason};
    use lb_common::slot::SlotWord;

    use crate::frame::XdpFrame;

    /// BPF_F_MMAPABLE: the daemon reads and writes the array's memory directly.
    const MMAPABLE: u32 = 1 << 10;

    // Sizes that depend on the node's capacity (all but CONTROL and EGRESS) are set by the daemon at load.
    #[map]
    static SERVICES: Array<ServiceBucket> = Array::with_max_entries(2, MMAPABLE);
    #[map]
    static SLOTS: Array<SlotWord> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static BACKENDS: Array<Backend> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static CONTROL: Array<u64> = Array::with_max_entries(control::WORDS, MMAPABLE);
    #[map]
    static BACKEND_COUNTERS: Array<BackendCounters> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static REASON_COUNTERS: Array<u64> = Array::with_max_entries(REASONS, MMAPABLE);
    /// Interfaces that packets may be redirected to, by interface index.
    #[map]
    static EGRESS: DevMapHash = DevMapHash::with_max_entries(64, 0);

    /// Set by the daemon at load.
    #[unsafe(no_mangle)]
    static NODE: Global<Node> = Global::new(Node {
        hash_keys: [0; 10],
        service_mask: 0,
        backend_capacity: 0,
    });

    #[xdp]
    pub fn sluice_balancer(ctx: XdpContext) -> u32 {
        let mut frame = XdpFrame::new(ctx);
        match process(&mut frame, &Maps) {
            Verdict::Forward(forwarded) => transmit(&frame, &forwarded),
            Verdict::Refuse(reason) => refuse(&frame, reason),
        }
    }

    /// Out by the interface it came in by, or by another one.
    #[inline(always)]
    fn transmit(frame: &XdpFrame, forwarded: &Forwarded) -> u32 {
        let action = if forwarded.ifindex == frame.ingress() {
            XDP_TX
        } else {
            // 0: what the kernel returns when the interface is not in the map.
            match EGRESS.redirect(forwarded.ifindex, 0) {
                Ok(action) => action,
                Err(_) => return refuse(frame, Reason::Egress),
            }
        };
        Maps.count(forwarded);
        action
    }

    #[inline(always)]
    fn refuse(frame: &XdpFrame, reason: Reason) -> u32 {
        let index = cpu().wrapping_mul(REASONS).wrapping_add(reason as u32);
        let mut count = 0_u64;
        if let Some(counter) = REASON_COUNTERS.get_ptr_mut(index) {
            // SAFETY: a valid map value; only this CPU writes it, and XDP is not preempted on its CPU.
            unsafe {
                *counter += 1;
                count = *counter;
            }
        }
        // Only what points to a fault of ours is worth a line; what the network sends is counted. When the ring of the log is
        // full, lines are lost, packets are not held up.
        match reason {
            // The first, second, fourth, eighth … of its kind: a flood of packets is no flood of lines.
            _ if count & count.wrapping_sub(1) != 0 => {}
            Reason::BackendGone => {
                warn!(frame.context(), "a slot names a backend of another service")
            }
            Reason::ServiceTable => {
                warn!(frame.context(), "a service's lookup table is out of bounds")
            }
            Reason::Egress => warn!(
                frame.context(),
                "the egress interface is not in the device map"
            ),
            _ => {}
        }
        match reason.fate() {
            Fate::Pass => XDP_PASS,
            Fate::Drop => XDP_DROP,
        }
    }

    #[inline(always)]
    fn cpu() -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_smp_processor_id() }
    }

    struct Maps;

    impl Tables for Maps {
        #[inline(always)]
        fn node(&self) -> Node {
            NODE.load()
        }

        #[inline(always)]
        fn control(&self, index: u32) -> Option<u64> {
            // SAFETY: a valid, aligned map value; volatile: exactly one load.
            CONTROL
                .get_ptr(index)
                .map(|word| unsafe { word.read_volatile() })
        }

        #[inline(always)]
        fn service_bucket(&self, index: u32) -> Option<&ServiceBucket> {
            SERVICES.get(index)
        }

        #[inline(always)]
        fn slot(&self, index: u32) -> Option<SlotWord> {
            // SAFETY: as for `control`.
            SLOTS
                .get_ptr(index)
                .map(|slot| unsafe { slot.read_volatile() })
        }

        #[inline(always)]
        fn backend(&self, id: u32) -> Option<&Backend> {
            BACKENDS.get(id)
        }

        #[inline(always)]
        fn count(&self, forwarded: &Forwarded) {
            let index = cpu()
                .wrapping_mul(NODE.load().backend_capacity)
                .wrapping_add(forwarded.backend);
            if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(index) {
                // SAFETY: as in `refuse`.
                unsafe {
                    (*counters).packets += 1;
                    (*counters).bytes += u64::from(forwarded.bytes);
                    (*counters).flows += u64::from(forwarded.opener);
                }
            }
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        // Never reached: the verifier refuses a program from which this loop can be reached.
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
