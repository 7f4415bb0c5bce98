//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit big-endian words.

/// Sum of the 16-bit big-endian words of `bytes`, not folded. An odd last byte counts as the high byte of a word.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total: u32 = 0;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        total += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u32::from(*last) << 8;
    }
    total
}

/// Folds carries back in and complements. Two folds suffice for any sum of less than 2^16 words.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

/// RFC 1624, equation 3: the checksum once a 16-bit word that it covers went from `old` to `new`. 0 and 0xffff stand for the same
/// sum; of the two this gives 0xffff only if nothing that is covered differs from zero.
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u32 + !old as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 section 3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2 after folding.
    #[test]
    fn example_of_the_rfc() {
        let sum = sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum, 0x2ddf0);
        assert_eq!(finish(sum), !0xddf2);
    }

    #[test]
    fn odd_length_pads_with_zero() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    /// RFC 1624 section 4: a word of 0x5555 becomes 0x3285 in a packet whose checksum is 0xdd2f.
    #[test]
    fn update_by_the_example_of_the_rfc() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_update_is_what_summing_anew_gives() {
        for other in 1..=0xffff_u16 {
            let of = |word: u16| finish(u32::from(other) + u32::from(word));
            for (old, new) in [(0x8000, 0x8100), (0x0106, 0x4006), (0xff01, 0x4001)] {
                assert_eq!(update(of(old), old, new), of(new), "beside {other:#x}");
            }
        }
    }
}
