//! A TCP handshake.

use std::net::SocketAddr;
use std::time::Duration;

use super::ProbeFailure;

/// Succeeds when the target completes the handshake; the connection is reset at once.
pub async fn probe(address: SocketAddr) -> Result<Duration, ProbeFailure> {
    let (_stream, start) = super::connect(address).await?;
    Ok(start.elapsed())
}
