//! The load balancer's XDP program: translates between the kernel and `lb_common::process`, which decides.
//!
//! Owns: the maps and the entry point. Does not own: any rule about packets.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    allow(
        internal_features,
        reason = "atomics of core::sync are not offered for BPF"
    )
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod message;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::Global;
    use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
    use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{Array, DevMapHash};
    use aya_ebpf::programs::XdpContext;
    use aya_log_ebpf::warn;
    use core::intrinsics::AtomicOrdering;
    use lb_common::abi::{
        Backend, BackendCounters, FlowLine, Identity, Node, ServiceBucket, control,
    };
    use lb_common::event::{EVENTS, Event};
    use lb_common::flow::{Age, FlowEntry, WAYS};
    use lb_common::packet::Frame as _;
    use lb_common::process::{Forwarded, Tables, Verdict, process};
    use lb_common::reason::{Fate, REASONS, Reason};
    use lb_common::slot::SlotWord;
    use lb_common::track::{
        FlowBucket, FlowMemory, Head, Kind, Place, TableWord, choose, rank, search, victim,
    };

    use crate::message::Ingress;

    /// BPF_F_MMAPABLE: the daemon reads and writes the array's memory directly.
    const MMAPABLE: u32 = 1 << 10;

    // Sizes that depend on the node's capacity (all but CONTROL and EGRESS) are set by the daemon at load.
    #[map]
    static SERVICES: Array<ServiceBucket> = Array::with_max_entries(2, MMAPABLE);
    #[map]
    static SLOTS: Array<SlotWord> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static FLOWS: Array<FlowLine> = Array::with_max_entries(1, MMAPABLE);
    /// For each slot when a flow of it could last not be remembered.
    #[map]
    static LOSSES: Array<u64> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static BACKENDS: Array<Backend> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static CONTROL: Array<u64> = Array::with_max_entries(control::WORDS, MMAPABLE);
    #[map]
    static BACKEND_COUNTERS: Array<BackendCounters> = Array::with_max_entries(1, MMAPABLE);
    #[map]
    static REASON_COUNTERS: Array<u64> = Array::with_max_entries(REASONS, MMAPABLE);
    #[map]
    static EVENT_COUNTERS: Array<u64> = Array::with_max_entries(EVENTS, MMAPABLE);
    /// Interfaces that packets may be redirected to, by interface index.
    #[map]
    static EGRESS: DevMapHash = DevMapHash::with_max_entries(64, 0);
    /// Who backends are, by id: not for packets, but for the next daemon.
    #[map]
    static IDENTITIES: Array<Identity> = Array::with_max_entries(1, MMAPABLE);

    /// Set by the daemon at load.
    #[unsafe(no_mangle)]
    static NODE: Global<Node> = Global::new(Node {
        hash_keys: [0; 10],
        service_mask: 0,
        backend_capacity: 0,
        flow_mask: 0,
        _pad: 0,
    });

    #[xdp]
    pub fn sluice_balancer(ctx: XdpContext) -> u32 {
        // A call that the compiler may not leave out: harmless, and another program.
        #[cfg(feature = "rebuilt")]
        cpu();
        let mut frame = Ingress::new(ctx);
        match process(&mut frame, &Maps) {
            Verdict::Forward(forwarded) => transmit(&frame, &forwarded),
            Verdict::Refuse(reason) => refuse(&frame, reason),
        }
    }

    /// Out by the interface it came in by, or by another one.
    #[inline(always)]
    fn transmit(frame: &Ingress, forwarded: &Forwarded) -> u32 {
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
    fn refuse(frame: &Ingress, reason: Reason) -> u32 {
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
            Fate::Reply => XDP_TX,
        }
    }

    #[inline(always)]
    fn cpu() -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_smp_processor_id() }
    }

    struct Maps;

    /// A bucket of the flow table.
    struct Line<'a>(&'a FlowLine);

    impl FlowBucket for Line<'_> {
        #[inline(always)]
        fn load(&self, way: usize) -> FlowEntry {
            let entries = (&raw const self.0.entries).cast::<u64>();
            // SAFETY: masked to the bucket's eight aligned words; volatile: exactly one load.
            FlowEntry(unsafe { entries.add(way % WAYS).read_volatile() })
        }

        #[inline(always)]
        fn swap(&self, way: usize, old: FlowEntry, new: FlowEntry) -> bool {
            let entries = (&raw const self.0.entries).cast::<u64>().cast_mut();
            // SAFETY: as in `load`; map memory is writable, and every writer uses compare-and-swap.
            let entry = unsafe { entries.add(way % WAYS) };
            // SAFETY: an aligned word of map memory.
            let (_, swapped) = unsafe {
                core::intrinsics::atomic_cxchg::<
                    u64,
                    { AtomicOrdering::SeqCst },
                    { AtomicOrdering::SeqCst },
                >(entry, old.0, new.0)
            };
            swapped
        }
    }

    impl FlowMemory for Maps {
        type Bucket<'a> = Line<'a>;

        #[inline(always)]
        fn clock(&self) -> u64 {
            // SAFETY: a helper without arguments.
            unsafe { bpf_ktime_get_coarse_ns() }
        }

        #[inline(always)]
        fn flow_mask(&self) -> u32 {
            NODE.load().flow_mask
        }

        #[inline(always)]
        fn flow_bucket(&self, index: u32) -> Option<Line<'_>> {
            FLOWS.get(index).map(Line)
        }

        #[inline(always)]
        fn head(&self, backend: u32) -> Option<Head> {
            let record = BACKENDS.get_ptr(backend)?;
            // SAFETY: a valid, aligned map value; volatile: exactly one load.
            Some(Head(unsafe { (&raw const (*record).head).read_volatile() }))
        }

        #[inline(always)]
        fn table(&self, backend: u32) -> Option<TableWord> {
            let record = BACKENDS.get_ptr(backend)?;
            // SAFETY: as in `head`.
            Some(TableWord(unsafe {
                (&raw const (*record).table).read_volatile()
            }))
        }

        #[inline(always)]
        fn search(&self, bucket: u32, tag: u32, service: u32, flow_idle: u16, now: Age) -> u32 {
            search_flow(
                bucket,
                tag,
                service,
                u32::from(flow_idle) | (u32::from(now.0) << 16),
            )
        }

        #[inline(always)]
        fn victim(&self, bucket: u32, now: Age) -> u32 {
            choose_victim(bucket, now.0.into())
        }

        #[inline(always)]
        fn rank(&self, entry: FlowEntry, now: Age) -> u32 {
            rank_entry(entry.0, now.0.into())
        }

        #[inline(always)]
        fn stamp_loss(&self, slot: u32, at: u64) {
            if let Some(loss) = LOSSES.get_ptr_mut(slot) {
                // SAFETY: as in `head`; the latest of several stamps may win.
                unsafe { loss.write_volatile(at) };
            }
        }

        #[inline(always)]
        fn count_event(&self, event: Event) {
            let index = cpu().wrapping_mul(EVENTS).wrapping_add(event as u32);
            if let Some(counter) = EVENT_COUNTERS.get_ptr_mut(index) {
                // SAFETY: as in `refuse`.
                unsafe { *counter += 1 };
            }
        }
    }

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
        fn track(&self, place: &Place, kind: Kind) -> Result<u32, Reason> {
            let owner = u64::from(place.service) << 32 | u64::from(place.slot);
            let rest = u64::from(place.flow_idle) << 8 | kind as u64;
            let answer = choose_backend(place.hash, place.word.0, owner, rest);
            match answer >> 32 {
                0 => Ok(answer as u32),
                1 => Err(Reason::Settling),
                _ => Err(Reason::ServiceTable),
            }
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

    /// `track::choose` as a global function: scalars in, a scalar out. High half of the answer: 0, the low one is a backend id;
    /// else why there is none.
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn choose_backend(hash: u64, word: u64, owner: u64, rest: u64) -> u64 {
        let place = Place {
            hash,
            service: (owner >> 32) as u32,
            flow_idle: (rest >> 8) as u16,
            slot: owner as u32,
            word: SlotWord(word),
        };
        let kind = match rest as u8 {
            0 => Kind::Open,
            1 => Kind::End,
            2 => Kind::Other,
            _ => Kind::Icmp,
        };
        match choose(&Maps, &place, kind) {
            Ok(backend) => backend.into(),
            Err(Reason::Settling) => 1 << 32,
            Err(_) => 2 << 32,
        }
    }

    /// `track::search` as a global function.
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn search_flow(bucket: u32, tag: u32, service: u32, times: u32) -> u32 {
        search(
            &Maps,
            bucket,
            tag,
            service,
            times as u16,
            Age((times >> 16) as u16),
        )
    }

    /// `track::victim` as a global function.
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn choose_victim(bucket: u32, now: u32) -> u32 {
        victim(&Maps, bucket, Age(now as u16))
    }

    /// `track::rank` as a global function.
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn rank_entry(entry: u64, now: u32) -> u32 {
        rank(&Maps, FlowEntry(entry), Age(now as u16))
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
