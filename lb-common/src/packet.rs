//! The bytes of one packet. This file owns all `unsafe` access to packet memory; its one proof obligation is the bounds check in
//! [`Frame::at`], which the kernel's verifier checks again.

use core::marker::PhantomData;

use crate::icmp::{self, Answer, Question};

/// One Ethernet frame that can grow or shrink at its head.
///
/// # Safety
/// `start() .. end()` must be readable and writable memory until the next call of `move_head`.
pub unsafe trait Frame {
    /// First byte of the Ethernet header.
    fn start(&self) -> *mut u8;
    /// One past the last byte.
    fn end(&self) -> *mut u8;
    /// Moves the first byte by `delta` (negative: the frame grows). `false`: no room, the frame is as before.
    /// The contents of new bytes are unspecified.
    fn move_head(&mut self, delta: i32) -> bool;
    /// The interface the frame came in by.
    fn ingress(&self) -> u32;

    /// [`icmp::judge`], which the kernel has as a function of its own: its verifier then looks at it once, not at each length of
    /// what stands in front of the message.
    #[inline(always)]
    fn icmp(&mut self, question: Question) -> Answer
    where
        Self: Sized,
    {
        icmp::judge(self, question)
    }

    /// Bytes in the frame.
    #[inline(always)]
    fn length(&self) -> usize {
        self.end() as usize - self.start() as usize
    }

    /// The `N` bytes that stand `offset` bytes into the frame; `None` when they do not lie wholly inside.
    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<View<'_, N>> {
        self.at::<N>(offset).map(|start| View {
            start,
            _frame: PhantomData,
        })
    }

    /// The same, writable.
    #[inline(always)]
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<ViewMut<'_, N>> {
        self.at::<N>(offset).map(|start| ViewMut {
            start,
            _frame: PhantomData,
        })
    }

    /// The bounds check: a pointer to `N` bytes that all lie inside the frame.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut u8> {
        // Offsets come from header lengths and stay far below this; the verifier needs a constant bound on each.
        if offset > MAX_OFFSET {
            return None;
        }
        let p = self.start().wrapping_add(offset);
        if p.wrapping_add(N) > self.end() {
            None
        } else {
            Some(p)
        }
    }
}

/// `N` bytes of a frame, checked once. Fields are read where they stand, at offsets that are checked at compile time: a copy of a
/// whole header would go through the BPF stack.
#[derive(Clone, Copy)]
pub struct View<'a, const N: usize> {
    start: *mut u8,
    _frame: PhantomData<&'a [u8; N]>,
}

impl<const N: usize> View<'_, N> {
    /// The `T` at `OFFSET`, bytes as they stand (no byte swap).
    #[inline(always)]
    pub fn get<T: Wire, const OFFSET: usize>(&self) -> T {
        const { assert!(OFFSET + size_of::<T>() <= N) };
        // SAFETY: inside the N checked bytes; any bit pattern is a valid `Wire`.
        unsafe { self.start.add(OFFSET).cast::<T>().read_unaligned() }
    }

    /// The big-endian 16-bit number at `OFFSET`.
    #[inline(always)]
    pub fn be16<const OFFSET: usize>(&self) -> u16 {
        u16::from_be(self.get::<u16, OFFSET>())
    }
}

/// `N` writable bytes of a frame, checked once.
pub struct ViewMut<'a, const N: usize> {
    start: *mut u8,
    _frame: PhantomData<&'a mut [u8; N]>,
}

impl<const N: usize> ViewMut<'_, N> {
    /// Stores `value` at `OFFSET` (no byte swap).
    #[inline(always)]
    pub fn set<T: Wire, const OFFSET: usize>(&mut self, value: T) {
        const { assert!(OFFSET + size_of::<T>() <= N) };
        // SAFETY: inside the N checked, writable bytes.
        unsafe { self.start.add(OFFSET).cast::<T>().write_unaligned(value) };
    }

    /// Fills all `N` bytes from the beginning of `template`.
    #[inline(always)]
    pub fn copy_from<const M: usize>(&mut self, template: &[u8; M]) {
        const { assert!(N <= M) };
        // SAFETY: N bytes on both sides, which cannot overlap: one is borrowed mutably.
        unsafe { self.start.copy_from_nonoverlapping(template.as_ptr(), N) };
    }
}

/// Largest offset ever looked at: two VLAN tags, eight IPv6 extension headers of 2,048 bytes, and room to spare.
const MAX_OFFSET: usize = 0x7fff;

/// Plain numbers: any bit pattern is valid.
///
/// # Safety
/// Implement only for such types.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($t:ty),*) => { $(
        // SAFETY: a plain integer.
        unsafe impl Wire for $t {}
    )* };
}
wire!(u8, u16, u32, u64);
