//! `sluice reload` and `sluice detach`: the daemon as a whole.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigPath, Failure, Json, Socket, output, wait};
use crate::api::client::{Client, ClientError};
use crate::api::dto::Changed;
use crate::config;
use crate::dataplane::Pins;

/// Read the configuration file again; on any error the state loaded before keeps running
///
/// Run-time changes stay, as far as the file still has what they are about; the log names those that go.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    json: Json,
}

pub fn reload(args: ReloadArgs, client: &Client) -> Result<(), Failure> {
    let changed = wait(client.reload())??;
    output::print_changed(&changed, args.json.json)
}

/// Take the data path down: no packet is balanced any more
///
/// A running daemon does it and ends. Without one, the data path that an earlier daemon left forwarding is found
/// by where it is pinned.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo sluice detach
  sudo sluice detach --config ./sluice.toml      When the daemon ran with that file
  sudo sluice detach --pin /sys/fs/bpf/sluice    When the file is gone")]
pub struct DetachArgs {
    #[command(flatten)]
    config: ConfigPath,
    /// Where the data path is pinned, instead of what the configuration says
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
}

pub fn detach(args: DetachArgs, socket: Socket) -> Result<(), Failure> {
    let config = config::load(&args.config.config);
    // A daemon on a socket of its own must be found too: what it runs would otherwise be torn down under it.
    let socket = match (&config, socket.socket) {
        (Ok(config), None) => Socket {
            socket: Some(config.socket.clone()),
        },
        (_, named) => Socket { socket: named },
    };
    let client = socket.client();
    let changed = match wait(client.detach())? {
        Ok(changed) => changed,
        Err(ClientError::Unreachable { .. }) => {
            let pin = match (args.pin, config) {
                (Some(pin), _) => pin,
                (None, Ok(config)) => config.node.pin,
                (None, Err(error)) => {
                    return Err(anyhow::anyhow!(
                        "no daemon answers on {}, and where the data path is pinned is not known, because the \
                         configuration cannot be read: name it with --config FILE, or the place with --pin DIR\n{error}",
                        client.socket().display()
                    )
                    .into());
                }
            };
            let freed = Pins::new(&pin).detach_alone()?;
            without_daemon(&freed, &pin.display().to_string())
        }
        Err(error) => return Err(error.into()),
    };
    output::print_changed(&changed, args.json.json)
}

fn without_daemon(freed: &[String], pin: &str) -> Changed {
    let message = match freed {
        [] => format!("nothing was attached: no daemon answers, and nothing is pinned under {pin}"),
        names => format!("detached from {} (no daemon was running)", names.join(", ")),
    };
    Changed {
        message,
        changed: !freed.is_empty(),
        ..Changed::default()
    }
}
