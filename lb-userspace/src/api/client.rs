//! The control socket's client side: one typed method per route.
//!
//! Owns: reaching the daemon, and telling apart the ways in which that fails. Does not own: how answers look
//! on a terminal (`cli`).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::dto::{
    AdminChange, ApiError, BackendAdd, BackendDetail, Changed, ErrorBody, OverlayDiff,
    OverlayReset, ServiceAdd, ServiceDetail, ServiceSummary, Status, WeightChange,
};

/// Where the daemon serves unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";

/// A little more than the server allows itself, so that its own explanation arrives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// Far above any real answer (16,384 backends are some 8 MiB); bounds what a wrong peer can make us hold.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error(
        "no sluice daemon answers on {}: {why}\n\
         Start one with `sluice run` (as a service: `systemctl start sluice`), or name its socket with `--socket PATH` or SLUICE_SOCKET.",
        socket.display()
    )]
    Unreachable { socket: PathBuf, why: String },
    /// The socket is there, but not for us.
    #[error("permission denied on {}{owner}\nRun the command with sudo, or {way}.", socket.display())]
    Denied {
        socket: PathBuf,
        /// `: it belongs to root:sluice, mode 0660`, or the same of a closed directory above it.
        owner: String,
        way: String,
    },
    /// The daemon understood and said no.
    #[error("{0}")]
    Refused(ApiError),
    /// What answered does not speak as this version does, or broke off.
    #[error(
        "{}: {why}\nIs the daemon of the same version as this command? `sluice --version`, and the daemon's log, tell.",
        socket.display()
    )]
    Answer { socket: PathBuf, why: String },
}

impl ClientError {
    /// The exit code of the user contract: 3 when the daemon cannot be reached, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Denied { .. } => 3,
            Self::Refused(_) | Self::Answer { .. } => 1,
        }
    }
}

/// Speaks to the daemon behind one socket; every request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    pub async fn services(&self) -> Result<Vec<ServiceSummary>, ClientError> {
        self.get("/v1/services").await
    }

    pub async fn service(&self, name: &str) -> Result<ServiceDetail, ClientError> {
        self.get(&format!("/v1/services/{}", segment(name))).await
    }

    pub async fn service_add(&self, add: &ServiceAdd) -> Result<Changed, ClientError> {
        self.send(Method::POST, "/v1/services", Some(add)).await
    }

    pub async fn service_remove(&self, name: &str) -> Result<Changed, ClientError> {
        let path = format!("/v1/services/{}", segment(name));
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// All backends, or those of one service.
    pub async fn backends(&self, service: Option<&str>) -> Result<Vec<BackendDetail>, ClientError> {
        match service {
            None => self.get("/v1/backends").await,
            Some(name) => {
                self.get(&format!("/v1/services/{}/backends", segment(name)))
                    .await
            }
        }
    }

    pub async fn backend_add(
        &self,
        service: &str,
        add: &BackendAdd,
    ) -> Result<Changed, ClientError> {
        let path = format!("/v1/services/{}/backends", segment(service));
        self.send(Method::POST, &path, Some(add)).await
    }

    pub async fn backend_remove(
        &self,
        service: &str,
        address: IpAddr,
    ) -> Result<Changed, ClientError> {
        let path = backend_path(service, address);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    pub async fn backend_admin(
        &self,
        service: &str,
        address: IpAddr,
        change: &AdminChange,
    ) -> Result<Changed, ClientError> {
        let path = format!("{}/admin", backend_path(service, address));
        self.send(Method::PUT, &path, Some(change)).await
    }

    pub async fn backend_weight(
        &self,
        service: &str,
        address: IpAddr,
        change: &WeightChange,
    ) -> Result<Changed, ClientError> {
        let path = format!("{}/weight", backend_path(service, address));
        self.send(Method::PUT, &path, Some(change)).await
    }

    pub async fn overlay(&self) -> Result<OverlayDiff, ClientError> {
        self.get("/v1/overlay").await
    }

    pub async fn overlay_reset(&self) -> Result<OverlayReset, ClientError> {
        self.send(Method::DELETE, "/v1/overlay", None::<&()>).await
    }

    /// The merged configuration file, as TOML.
    pub async fn merged_config(&self) -> Result<String, ClientError> {
        const PATH: &str = "/v1/config";
        let bytes = self.request(Method::GET, PATH, None::<&()>).await?;
        String::from_utf8(bytes.into()).map_err(|error| self.answer(PATH, &error))
    }

    pub async fn reload(&self) -> Result<Changed, ClientError> {
        self.send(Method::POST, "/v1/reload", None::<&()>).await
    }

    pub async fn detach(&self) -> Result<Changed, ClientError> {
        self.send(Method::POST, "/v1/detach", None::<&()>).await
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A, ClientError> {
        let what = format!("{method} {path}");
        let bytes = self.request(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.answer(&what, &error))
    }

    /// The body of a successful answer.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.not_connected(&error))?;
        let what = format!("{method} {path}");
        let body = match body {
            None => Vec::new(),
            Some(body) => serde_json::to_vec(body).map_err(|error| self.answer(&what, &error))?,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "sluice")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.answer(&what, &error))?;
        let (status, bytes) = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, request))
            .await
            .map_err(|_| {
                let seconds = ANSWER_TIMEOUT.as_secs();
                self.answer(&what, &format!("no answer within {seconds} s"))
            })?
            .map_err(|error| self.answer(&what, &error))?;
        if status.is_success() {
            return Ok(bytes);
        }
        let Ok(ErrorBody { error }) = serde_json::from_slice(&bytes) else {
            let text = String::from_utf8_lossy(&bytes);
            return Err(self.answer(&what, &format!("{status}: {}", text.trim())));
        };
        Err(ClientError::Refused(match status {
            StatusCode::NOT_FOUND => ApiError::NotFound(error),
            StatusCode::CONFLICT => ApiError::Conflict(error),
            status if status.is_client_error() => ApiError::Invalid(error),
            _ => ApiError::Failed(error),
        }))
    }

    fn answer(&self, what: &str, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Answer {
            socket: self.socket.clone(),
            why: format!("{what}: {why}"),
        }
    }

    fn not_connected(&self, error: &io::Error) -> ClientError {
        let socket = self.socket.clone();
        let why = match error.kind() {
            io::ErrorKind::PermissionDenied => return self.denied(),
            io::ErrorKind::NotFound => "there is no such socket".to_owned(),
            io::ErrorKind::ConnectionRefused => {
                "nobody listens on the socket (its daemon has ended)".to_owned()
            }
            _ => error.to_string(),
        };
        ClientError::Unreachable { socket, why }
    }

    fn denied(&self) -> ClientError {
        // What may not be seen is below a closed directory: then that one is what stands in the way.
        let closed = self
            .socket
            .ancestors()
            .find_map(|path| Some((path, fs::metadata(path).ok()?)));
        let (owner, way) = match closed {
            None => (String::new(), "have its owner let you in".to_owned()),
            Some((path, metadata)) => {
                let what = if path == self.socket {
                    "it".to_owned()
                } else {
                    path.display().to_string()
                };
                let user = user_name(metadata.uid());
                let group = group_name(metadata.gid());
                let mode = metadata.mode() & 0o7777;
                (
                    format!(": {what} belongs to {user}:{group}, mode {mode:04o}"),
                    format!("add yourself to the group `{group}` (`usermod -aG {group} $USER`)"),
                )
            }
        };
        ClientError::Denied {
            socket: self.socket.clone(),
            owner,
            way,
        }
    }
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

fn group_name(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        Ok(None) | Err(_) => gid.to_string(),
    }
}

/// One request and its whole answer over a fresh connection.
async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    // The connection must be driven while the answer is awaited; both end with this call.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}

fn backend_path(service: &str, address: IpAddr) -> String {
    format!("/v1/services/{}/backends/{address}", segment(service))
}

/// Percent-encodes what may not stand in one path segment (RFC 3986 section 2.3: unreserved stays).
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_stays_one_path_segment() {
        assert_eq!(segment("web-1.prod_x~"), "web-1.prod_x~");
        assert_eq!(segment("a/b?c%d é"), "a%2Fb%3Fc%25d%20%C3%A9");
    }

    #[test]
    fn an_ipv6_backend_is_named_without_brackets() {
        assert_eq!(
            backend_path("web", "2001:db8::11".parse().unwrap()),
            "/v1/services/web/backends/2001:db8::11"
        );
    }
}
