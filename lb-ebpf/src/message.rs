//! The frame as the balancer sees it: with the reading of ICMP messages as a global function, which the kernel's verifier looks at
//! once, whatever stands in front of the message.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::icmp::{Answer, Question, judge};
use lb_common::packet::Frame;

use crate::frame::XdpFrame;

pub struct Ingress(XdpFrame);

impl Ingress {
    #[inline(always)]
    pub const fn new(ctx: XdpContext) -> Self {
        Self(XdpFrame::new(ctx))
    }

    /// For the log.
    #[inline(always)]
    pub const fn context(&self) -> &XdpContext {
        self.0.context()
    }
}

// SAFETY: the frame inside.
unsafe impl Frame for Ingress {
    #[inline(always)]
    fn start(&self) -> *mut u8 {
        self.0.start()
    }

    #[inline(always)]
    fn end(&self) -> *mut u8 {
        self.0.end()
    }

    #[inline(always)]
    fn move_head(&mut self, delta: i32) -> bool {
        self.0.move_head(delta)
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress()
    }

    #[inline(always)]
    fn icmp(&mut self, question: Question) -> Answer {
        let answer = judge_message(self.context().as_ptr().cast(), question.0);
        // Read back: what the compiler knows of the number the verifier does not, and checks that it leaves out are missed.
        // SAFETY: a variable of our own.
        Answer(unsafe { (&raw const answer).read_volatile() })
    }
}

/// `icmp::judge` as a global function: scalars beside the context.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_message(ctx: *mut xdp_md, question: u64) -> u64 {
    let mut frame = XdpFrame::new(XdpContext::new(ctx));
    judge(&mut frame, Question(question)).0
}
