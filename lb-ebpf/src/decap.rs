//! The decapsulator's XDP program, for backends: translates between the kernel and `lb_common::decap`, which decides.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod frame;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{HashMap, PerCpuArray};
    use aya_ebpf::programs::XdpContext;
    use lb_common::decap::{Decapped, Key, decapsulate};

    use crate::frame::XdpFrame;

    /// Outer destinations that are ours.
    #[map]
    static DECAP_ALLOWED: HashMap<Key, u64> = HashMap::with_max_entries(256, 0);
    /// Outer sources that may send to them, or `decap::EVERY`.
    #[map]
    static DECAP_SOURCES: HashMap<Key, u64> = HashMap::with_max_entries(256, 0);
    #[map]
    static DECAP_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(8, 0);

    #[xdp]
    pub fn sluice_decap(ctx: XdpContext) -> u32 {
        let mut frame = XdpFrame::new(ctx);
        let result = decapsulate(
            &mut frame,
            // SAFETY: the value is never looked at, only that there is one.
            |destination| unsafe { DECAP_ALLOWED.get(destination) }.is_some(),
            // SAFETY: as above.
            |source| unsafe { DECAP_SOURCES.get(source) }.is_some(),
        );
        if let Some(counter) = DECAP_COUNTERS.get_ptr_mut(result as u32) {
            // SAFETY: a valid map value of this CPU; XDP is not preempted on its CPU.
            unsafe { *counter += 1 };
        }
        match result {
            Decapped::Bad => XDP_DROP,
            Decapped::Done | Decapped::NotTunnel | Decapped::NotAllowed => XDP_PASS,
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
