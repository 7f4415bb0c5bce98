//! The bytes of one packet. This file owns all `unsafe` access to packet memory; its one proof obligation is the bounds check in
//! [`Frame::at`], which the kernel's verifier checks again.

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

    /// Bytes in the frame.
    #[inline(always)]
    fn length(&self) -> usize {
        self.end() as usize - self.start() as usize
    }

    /// A copy of the `T` that stands `offset` bytes into the frame; `None` when it does not lie wholly inside.
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` returned a pointer to size_of::<T>() bytes inside the frame; any bit pattern is a valid `Wire`.
        self.at::<T>(offset).map(|p| unsafe { p.read_unaligned() })
    }

    /// Writes `value` at `offset`; `false` when it does not fit.
    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> bool {
        match self.at::<T>(offset) {
            Some(p) => {
                // SAFETY: as in `read`; the frame's memory is writable.
                unsafe { p.write_unaligned(value) };
                true
            }
            None => false,
        }
    }

    /// The bounds check: a pointer to `size_of::<T>()` bytes that all lie inside the frame.
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        // Offsets come from header lengths and stay far below this; the verifier needs a constant bound on each.
        if offset > MAX_OFFSET {
            return None;
        }
        let p = self.start().wrapping_add(offset);
        if p.wrapping_add(size_of::<T>()) > self.end() { None } else { Some(p.cast()) }
    }
}

/// Largest offset ever looked at: two VLAN tags, eight IPv6 extension headers of 2,048 bytes, and room to spare.
const MAX_OFFSET: usize = 0x7fff;

/// Plain bytes: any bit pattern is valid, no padding.
///
/// # Safety
/// Implement only for such types.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($t:ty),*) => { $(
        // SAFETY: plain integers, or packed-by-construction header structs of byte arrays and integers without padding.
        unsafe impl Wire for $t {}
    )* };
}
wire!(u8, u16, u32, u64, network_types::eth::EthHdr, network_types::ip::Ipv4Hdr, network_types::ip::Ipv6Hdr);

// SAFETY: arrays of plain bytes have no padding.
unsafe impl<const N: usize> Wire for [u8; N] {}
