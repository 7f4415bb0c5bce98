//! `lb_common::packet::Frame` over an XDP context.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::packet::Frame;

pub struct XdpFrame {
    ctx: XdpContext,
}

impl XdpFrame {
    #[inline(always)]
    pub const fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }

    /// For the log.
    #[inline(always)]
    #[allow(dead_code, reason = "the decapsulator does not log")]
    pub const fn context(&self) -> &XdpContext {
        &self.ctx
    }
}

// SAFETY: data..data_end is the packet; the verifier checks every access against it.
unsafe impl Frame for XdpFrame {
    #[inline(always)]
    fn start(&self) -> *mut u8 {
        self.ctx.data() as *mut u8
    }

    #[inline(always)]
    fn end(&self) -> *mut u8 {
        self.ctx.data_end() as *mut u8
    }

    #[inline(always)]
    fn move_head(&mut self, delta: i32) -> bool {
        // SAFETY: a valid context; the helper checks the room.
        unsafe { bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), delta) == 0 }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }
}
