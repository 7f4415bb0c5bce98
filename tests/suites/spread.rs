//! Shares: 10,000 connections fall on the backends as chance would have it, and as the weights say.

use anyhow::{Result, ensure};
use lab::config::File;
use lab::stats::{chi_square, chi_square_limit};
use lab::{Daemon, Lab};

use crate::Suites;
use crate::setup::{serving, web, web_vip};

const CONNECTIONS: usize = 10_000;
const AT_ONCE: usize = 64;

pub fn add(suites: &mut Suites) {
    suites.case("spread", "10000_connections_over_5_equal_backends", || {
        spread(&[1, 1, 1, 1, 1])
    });
    suites.case("spread", "weights_1_2_4", || spread(&[1, 2, 4]));
    suites.case("spread", "weight_0_gets_nothing", weight_zero);
}

fn spread(weights: &[u32]) -> Result<()> {
    let lab = serving(Lab::builder().backends(weights.len()).clients(8))?;
    let _daemon = Daemon::start(&lab, &File::new(vec![web(&lab).weights(weights)]))?;
    let run = lab.client().http(web_vip(), CONNECTIONS, AT_ONCE)?;
    let answers = run.ensure_all_answered()?.by_backend();
    let observed: Vec<u64> = lab
        .backends()
        .iter()
        .map(|backend| answers.get(backend.name()).copied().unwrap_or(0))
        .collect();
    let weights: Vec<u64> = weights.iter().map(|&weight| weight.into()).collect();
    let (statistic, limit) = (
        chi_square(&observed, &weights),
        chi_square_limit(weights.len() - 1),
    );
    ensure!(
        statistic < limit,
        "{observed:?} for weights {weights:?}: chi-square {statistic:.1} is over {limit} (p = 1e-4)"
    );
    Ok(())
}

fn weight_zero() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let _daemon = Daemon::start(&lab, &File::new(vec![web(&lab).weights(&[1, 0])]))?;
    let answers = lab
        .client()
        .http(web_vip(), 200, 16)?
        .ensure_all_answered()?
        .by_backend();
    ensure!(answers.get("backend1") == Some(&200), "{answers:?}");
    Ok(())
}
