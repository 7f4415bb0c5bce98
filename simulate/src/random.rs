//! Random numbers that are the same in every run: splitmix64 and what is made of it.

/// A stream of its own for each seed.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed` that `part` has for itself.
    pub fn new(seed: u64, part: u64) -> Self {
        let base = Self(seed).word();
        // Mixed once more: neighbours' streams must not be shifted copies of each other.
        Self(Self(base.wrapping_add(part)).word())
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    pub fn share(&mut self) -> f64 {
        ((self.word() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.share().ln()
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let mut random = Random::new(7, 1);
        let first: Vec<u64> = (0..3).map(|_| random.word()).collect();
        let mut again = Random::new(7, 1);
        assert_eq!(first, [again.word(), again.word(), again.word()]);
        assert_ne!(first[0], Random::new(7, 2).word());
        assert_ne!(first[0], Random::new(8, 1).word());
    }

    #[test]
    fn means_are_as_named() {
        let mut random = Random::new(1, 0);
        let count = 100_000;
        let mean = |next: &mut dyn FnMut() -> f64| {
            (0..count).map(|_| next()).sum::<f64>() / f64::from(count)
        };
        assert!((mean(&mut || random.exponential()) - 1.0).abs() < 0.02);
        let mut random = Random::new(2, 0);
        assert!(mean(&mut || random.normal()).abs() < 0.02);
        let mut random = Random::new(3, 0);
        assert!((mean(&mut || random.normal().powi(2)) - 1.0).abs() < 0.03);
    }
}
