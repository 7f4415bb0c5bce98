//! `sluice decap`: what a backend runs to take `ipip` and `gue` packets apart.

use std::net::IpAddr;

use clap::Args;

use super::{Failure, address, log, wait};
use crate::dataplane;
use crate::model::XdpMode;

/// On a backend: take the outer headers off packets from the balancers
///
/// Runs until SIGTERM or SIGINT, then detaches. For backends whose kernel has no ipip, ip6tnl or fou module, or that
/// want the work done in XDP. Takes IP in IP and, on UDP port 6080, GUE. The VIP must be on the backend's loopback: `ip address add 203.0.113.10/32 dev lo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo sluice decap --interface eth0
  sudo sluice decap --interface eth0 --xdp-mode generic --allow 10.0.0.11 --allow 2001:db8::11
  sudo sluice decap --interface eth0 --from 10.0.0.2 10.0.0.3")]
pub struct DecapArgs {
    /// The interface on which packets from the balancers arrive
    #[arg(long, value_name = "IF")]
    interface: String,
    /// How to attach: native where the driver can, else generic; or only the one named
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = parse_mode)]
    xdp_mode: XdpMode,
    /// Take tunnel packets for these outer destinations (addresses of this host; repeat it); without it, for every
    /// address of the interface
    #[arg(long, value_name = "ADDRESS", value_parser = address::ip, num_args = 1..)]
    allow: Vec<IpAddr>,
    /// Take tunnel packets from these outer sources only (the balancers' addresses; repeat it); without it, from every
    /// source
    #[arg(long, value_name = "ADDRESS", value_parser = address::ip, num_args = 1..)]
    from: Vec<IpAddr>,
    #[command(flatten)]
    log: log::LogArgs,
}

fn parse_mode(text: &str) -> Result<XdpMode, String> {
    match text {
        "auto" => Ok(XdpMode::Auto),
        "native" => Ok(XdpMode::Native),
        "generic" => Ok(XdpMode::Generic),
        other => Err(format!(
            "`{other}` is not an XDP mode; write auto, native or generic"
        )),
    }
}

pub fn run(args: DecapArgs) -> Result<(), Failure> {
    log::start(&args.log)?;
    let decap = dataplane::decap::run(&args.interface, args.xdp_mode, args.allow, args.from);
    Ok(wait(decap)??)
}
