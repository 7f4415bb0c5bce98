//! The control socket's server side: who may connect, and for how long anybody waits.
//!
//! Owns: the socket file (made, found stale, removed), the caller's identity, limits of size and time.
//! Does not own: the routes (`routes`), or any answer (`daemon`'s owner loop, reached through a channel).

mod routes;

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, User};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::api::dto::{Caller, Command};

pub use routes::openapi;

/// The largest request body: a service with a thousand backends is some 60 KiB.
pub const BODY_LIMIT: usize = 256 * 1024;

/// How long anybody waits.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For a request: its body and the owner loop's answer together.
    request: Duration,
    /// For open requests once the daemon is told to end.
    drain: Duration,
}

impl Limits {
    const USUAL: Self = Self {
        request: Duration::from_secs(30),
        drain: Duration::from_secs(5),
    };
}

/// Owner and group may use the socket; nobody else may.
const SOCKET_MODE: u32 = 0o660;

/// Makes the control socket at `path`.
///
/// A socket on which nobody answers any more is left over from a killed daemon and is replaced; one on which
/// somebody answers means that another daemon runs, and this one must not.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .with_context(|| {
            format!(
                "cannot make {} for the control socket: run as root, or set [api] socket to a place you may write",
                parent.display()
            )
        })?;
    // Two daemons starting at once must not both find the socket stale and remove each other's.
    // The lock is on the directory, so it leaves no file behind, and ends with this function.
    let directory =
        fs::File::open(parent).with_context(|| format!("cannot open {}", parent.display()))?;
    let _starting = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(
        |(_, errno)| {
            anyhow::anyhow!(
                "{} is locked by another daemon that is starting ({errno}): wait for it, or choose another [api] socket",
                parent.display()
            )
        },
    )?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "cannot make the control socket {}: run as root, or set [api] socket to a place you may write",
            path.display()
        )
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("cannot set mode {SOCKET_MODE:o} on {}", path.display()))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    if !kind.is_socket() {
        bail!(
            "{} exists and is not a socket: remove it, or set [api] socket to another path",
            path.display()
        );
    }
    match StdUnixStream::connect(path) {
        Ok(stream) => {
            let pid = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
            bail!(
                "another sluice (pid {pid}) is serving {}: stop it first (`kill {pid}`), or set [api] socket to another path",
                path.display()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display())),
        Err(error) => Err(error)
            .with_context(|| format!("cannot tell whether somebody serves {}", path.display())),
    }
}

/// Answers requests on `listener` until `shutdown` resolves, then lets the open ones finish (at most 5 s).
///
/// The socket file is removed before the listener closes: a daemon started meanwhile finds either a live
/// socket or none, and its own new one is never removed by us.
pub async fn serve(
    listener: UnixListener,
    commands: mpsc::Sender<Command>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve_within(Limits::USUAL, listener, commands, shutdown).await
}

async fn serve_within(
    limits: Limits,
    listener: UnixListener,
    commands: mpsc::Sender<Command>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let path: Option<PathBuf> = listener
        .local_addr()
        .ok()
        .and_then(|address| address.as_pathname().map(Path::to_path_buf));
    let (ending, ended) = tokio::sync::oneshot::channel::<()>();
    let stop = async move {
        shutdown.await;
        if let Some(path) = path
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(socket = %path.display(), %error, "the control socket could not be removed");
        }
        // The receiver lives as long as this future is polled.
        let _ = ending.send(());
    };
    let service =
        routes::router(commands, limits.request).into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop);
    let overtime = async {
        // An error means that the server ended by itself; then this branch must never win.
        if ended.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(limits.drain).await;
    };
    tokio::select! {
        result = server => result.context("the control socket failed"),
        () = overtime => {
            tracing::warn!("open requests on the control socket were cut off after {:?}", limits.drain);
            Ok(())
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Peer(Caller);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(match stream.io().peer_cred() {
            Ok(credentials) => caller(credentials.uid()),
            // Access is the socket's mode; this name is only for the record.
            Err(_) => Caller {
                uid: u32::MAX,
                user: "unknown".to_owned(),
            },
        })
    }
}

/// A caller by its user id; the id itself stands for a user without a name.
fn caller(uid: u32) -> Caller {
    let user = match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    };
    Caller { uid, user }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::api::client::{Client, ClientError};
    use crate::api::dto::ApiError;

    /// A server whose owner loop takes commands and never answers them.
    async fn with_silent_owner(
        limits: Limits,
        test: impl AsyncFnOnce(Client, tokio::sync::oneshot::Sender<()>),
    ) -> anyhow::Result<()> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sluice.sock");
        let listener = bind(&socket).unwrap();
        let (commands, mut received) = mpsc::channel(16);
        let owner = tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(command) = received.recv().await {
                unanswered.push(command);
            }
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(serve_within(limits, listener, commands, async {
            let _ = stopped.await;
        }));
        test(Client::new(socket), stop).await;
        let ended = tokio::time::timeout(Duration::from_secs(5), server)
            .await
            .expect("the server ends in time")
            .unwrap();
        owner.abort();
        ended
    }

    #[tokio::test]
    async fn an_owner_that_does_not_answer_is_said_so() {
        let limits = Limits {
            request: Duration::from_millis(50),
            ..Limits::USUAL
        };
        with_silent_owner(limits, async |client, stop| {
            let error = client.status().await.unwrap_err();
            assert!(
                matches!(&error, ClientError::Refused(ApiError::Failed(text))
                    if text.contains("GET /v1/status: no answer within 50ms")),
                "{error:?}"
            );
            stop.send(()).unwrap();
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn an_open_request_holds_the_end_up_for_a_bounded_time() {
        let limits = Limits {
            drain: Duration::from_millis(100),
            ..Limits::USUAL
        };
        let begin = Instant::now();
        with_silent_owner(limits, async |client, stop| {
            // Asked and never answered: still open when the server is told to end.
            tokio::spawn(async move { client.status().await });
            tokio::time::sleep(Duration::from_millis(50)).await;
            stop.send(()).unwrap();
        })
        .await
        .unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(150), "it waited");
    }
}
