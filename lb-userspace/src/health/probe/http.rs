//! An HTTP/1.1 GET. The status decides; the body is looked at only so far as to be polite.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::ProbeFailure;

/// A status line and headers larger than this are no answer to a health check.
const HEAD_LIMIT: usize = 32 * 1024;
/// How much of the body is taken, so that a server sees its small answer read rather than reset …
const BODY_LIMIT: usize = 64 * 1024;
/// … and how long that may take.
const BODY_PATIENCE: Duration = Duration::from_millis(100);

/// Succeeds when the answer's status is within `expect`; gives the time until the status was there.
pub async fn probe(
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
    expect: (u16, u16),
) -> Result<Duration, ProbeFailure> {
    // A socket address is written as the header wants it: `10.0.0.1:80`, `[2001:db8::1]:80`.
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    let request = Request::get(path)
        .header(header::HOST, &host)
        .header(
            header::USER_AGENT,
            concat!("sluice/", env!("CARGO_PKG_VERSION"), " (health probe)"),
        )
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| {
            ProbeFailure::Local(format!(
                "cannot ask for path `{path}` with host `{host}`: {e}"
            ))
        })?;

    let (stream, start) = super::connect(address).await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|e| describe(&e))?;
    // The connection does its IO in its own task, which ends with the probe or, once there is a verdict, with the body.
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| describe(&e))?;
    let latency = start.elapsed();

    let status = response.status().as_u16();
    // The verdict stands. The body is taken beside it, for a bounded time: waited for here, it would count against the
    // probe's timeout, and an answer that came just in time would fail.
    tokio::spawn(async move {
        let _connection = connection;
        let _ = tokio::time::timeout(BODY_PATIENCE, drain(response.into_body())).await;
    });
    if (expect.0..=expect.1).contains(&status) {
        Ok(latency)
    } else {
        Err(ProbeFailure::Target(match expect {
            (low, high) if low == high => format!("HTTP {status} (expected {low})"),
            (low, high) => format!("HTTP {status} (expected {low}-{high})"),
        }))
    }
}

async fn drain(mut body: Incoming) {
    let mut taken = 0;
    while taken < BODY_LIMIT {
        match body.frame().await {
            Some(Ok(frame)) => taken += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

fn describe(error: &hyper::Error) -> ProbeFailure {
    let io_error = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    if let Some(io_error) = io_error {
        return match super::describe(io_error) {
            ProbeFailure::Target(words) => {
                ProbeFailure::Target(format!("{words} before an answer"))
            }
            local => local,
        };
    }
    ProbeFailure::Target(if error.is_parse_too_large() {
        format!("the answer's headers exceed {} KiB", HEAD_LIMIT / 1024)
    } else if error.is_parse() {
        "the answer is not HTTP/1.1".into()
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "connection closed before an answer".into()
    } else {
        error.to_string()
    })
}
