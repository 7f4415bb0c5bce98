//! Is an observed spread one that chance explains?

/// Pearson's chi-square statistic of `observed` against shares proportional to `weights`.
pub fn chi_square(observed: &[u64], weights: &[u64]) -> f64 {
    assert_eq!(
        observed.len(),
        weights.len(),
        "one weight per observed count"
    );
    let total: u64 = observed.iter().sum();
    let weight: u64 = weights.iter().sum();
    observed
        .iter()
        .zip(weights)
        .map(|(&seen, &share)| {
            let expected = total as f64 * share as f64 / weight as f64;
            (seen as f64 - expected).powi(2) / expected
        })
        .sum()
}

/// The value that chi-square with `degrees` degrees of freedom exceeds with probability 1e-4.
///
/// # Panics
/// Outside 1..=9 degrees: the table ends there.
pub fn chi_square_limit(degrees: usize) -> f64 {
    const LIMITS: [f64; 9] = [
        15.137, 18.421, 21.108, 23.513, 25.745, 27.856, 29.878, 31.828, 33.720,
    ];
    LIMITS[degrees - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_spread_is_zero_and_a_bad_one_is_seen() {
        assert_eq!(chi_square(&[100, 100, 200], &[1, 1, 2]), 0.0);
        assert!(chi_square(&[2_000, 2_000, 2_000, 2_000, 2_000], &[1; 5]) < chi_square_limit(4));
        // The 74/26 split that users of another balancer saw with two backends.
        assert!(chi_square(&[740, 260], &[1, 1]) > chi_square_limit(1));
    }
}
