//! `sluice run`: the daemon.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{ConfigPath, Failure, log};
use crate::daemon;

/// Run the balancer: read the configuration, attach to the interfaces, balance until told to stop
///
/// SIGHUP reads the configuration again, SIGTERM ends the daemon and leaves the data path forwarding.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo sluice run                                  With /etc/sluice/sluice.toml
  sudo SLUICE_LOG=debug sluice run --config ./sluice.toml
  sudo sluice run --log-format json 2>> /var/log/sluice.json")]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    log: log::LogArgs,
    /// Load this BPF object instead of the built-in data path
    ///
    /// For trying a data path that was built apart, for example to measure a change of the compiler. It must come from the same
    /// version of Sluice.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    object: Option<PathBuf>,
}

pub fn run(args: RunArgs) -> Result<(), Failure> {
    log::start(&args.log)?;
    // The owner loop has this thread; two workers do for probes, control socket and scrapes. Packets are the kernel's.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    Ok(runtime.block_on(daemon::run(args.config.config, args.object))?)
}
