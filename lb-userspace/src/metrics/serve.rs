//! The HTTP listener for monitoring: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::{OPENMETRICS, PLAIN, Snapshot, encode, encode_plain};

/// Prometheus gives up on a scrape after 10 s by default; an answer that late has no reader.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a slow reader may hold up the daemon's end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the numbers come from.
pub trait Source: Send + Sync + 'static {
    /// Everything as it is now.
    fn snapshot(&self) -> impl Future<Output = anyhow::Result<Snapshot>> + Send;

    /// Why this node should not get traffic yet, one reason each; empty: it is ready.
    fn not_ready(&self) -> Vec<String>;
}

/// Answers on `listener` until `shutdown` resolves.
pub async fn serve<S: Source>(
    listener: TcpListener,
    source: S,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics::<S>))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready::<S>))
        .fallback(async || (StatusCode::NOT_FOUND, INDEX))
        .with_state(Arc::new(source));
    let (ending, ended) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        // The receiver lives as long as this future is polled.
        let _ = ending.send(());
    });
    let overtime = async {
        if ended.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = server => result.context("the metrics listener failed"),
        () = overtime => Ok(()),
    }
}

const INDEX: &str = "sluice: eBPF/XDP layer-4 load balancer\n\n\
                     /metrics  for Prometheus\n\
                     /healthz  200 while the daemon lives\n\
                     /readyz   200 when traffic may come, else 503 and why not\n";

async fn index() -> &'static str {
    INDEX
}

async fn metrics<S: Source>(State(source): State<Arc<S>>, headers: HeaderMap) -> Response {
    let snapshot = match tokio::time::timeout(SNAPSHOT_TIMEOUT, source.snapshot()).await {
        Ok(Ok(snapshot)) => snapshot,
        Ok(Err(error)) => {
            tracing::warn!(%error, "no metrics for this scrape");
            let text = format!("the data path could not be read: {error:#}\n");
            return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
        }
        Err(_) => {
            let text = "the daemon did not answer in time: see its log\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        }
    };
    let openmetrics = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    if openmetrics {
        ([(CONTENT_TYPE, OPENMETRICS)], encode(&snapshot)).into_response()
    } else {
        ([(CONTENT_TYPE, PLAIN)], encode_plain(&snapshot)).into_response()
    }
}

async fn ready<S: Source>(State(source): State<Arc<S>>) -> (StatusCode, String) {
    let reasons = source.not_ready();
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}
