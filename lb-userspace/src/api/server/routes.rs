//! The routes of the control socket: each turns a request into a [`Command`] and its answer into JSON.
//!
//! Owns: paths, methods, statuses, the OpenAPI document. Does not own: what a command does.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post, put};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use utoipa::OpenApi;

use super::{BODY_LIMIT, Peer};
use crate::api::dto::{
    AdminChange, ApiError, BackendAdd, BackendDetail, Changed, Command, Drained, ErrorBody,
    OverlayDiff, OverlayReset, Reply, ServiceAdd, ServiceDetail, ServiceSummary, Status,
    WeightChange,
};

/// Where commands go: the daemon's owner loop.
type Daemon = State<mpsc::Sender<Command>>;
type Answer<T> = Result<Json<T>, Refusal>;

pub(super) fn router(commands: mpsc::Sender<Command>, timeout: Duration) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services).post(service_add))
        .route("/v1/services/{name}", get(service).delete(service_remove))
        .route(
            "/v1/services/{name}/backends",
            get(service_backends).post(backend_add),
        )
        .route("/v1/backends", get(backends))
        .route(
            "/v1/services/{name}/backends/{address}",
            delete(backend_remove),
        )
        .route(
            "/v1/services/{name}/backends/{address}/admin",
            put(backend_admin),
        )
        .route(
            "/v1/services/{name}/backends/{address}/weight",
            put(backend_weight),
        )
        .route("/v1/overlay", get(overlay).delete(overlay_reset))
        .route("/v1/config", get(merged_config))
        .route("/v1/reload", post(reload))
        .route("/v1/detach", post(detach))
        .route("/openapi.json", get(openapi_json))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(timeout, within_time))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(commands)
}

/// The OpenAPI document of the control socket.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice control socket",
        description = "JSON over HTTP/1.1 on a Unix socket, by default /run/sluice/sluice.sock. \
                       Whoever may write to the socket may use every route."
    ),
    paths(
        status, services, service_add, service, service_remove, service_backends, backend_add,
        backends, backend_remove, backend_admin, backend_weight, overlay, overlay_reset,
        merged_config, reload, detach
    ),
    components(schemas(Drained)),
    tags(
        (name = "reading", description = "Answers that change nothing"),
        (name = "changing", description = "Changes; each says in one sentence what it did")
    )
)]
struct Document;

/// A refusal, as it goes over the wire: a status and an [`ErrorBody`].
struct Refusal(StatusCode, String);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let status = match &error {
            ApiError::NotFound(_) => StatusCode::NOT_FOUND,
            ApiError::Conflict(_) => StatusCode::CONFLICT,
            ApiError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}

/// Sends a command to the owner loop and waits for its answer.
async fn ask<T>(
    daemon: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Answer<T> {
    let ending = || {
        Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is ending: try again when it is back (`sluice status`)".to_owned(),
        )
    };
    let (reply, answer) = oneshot::channel();
    daemon.send(command(reply)).await.map_err(|_| ending())?;
    Ok(Json(answer.await.map_err(|_| ending())??))
}

async fn within_time(State(timeout): State<Duration>, request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    match tokio::time::timeout(timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "{what}: no answer within {timeout:?}; it may still be carried out, see `sluice status` and the daemon's log",
            ),
        )
        .into_response(),
    }
}

/// Every route by method and path, as the OpenAPI document has them.
fn known_routes() -> Vec<(&'static str, String)> {
    let mut routes = Vec::new();
    for (path, item) in openapi().paths.paths {
        let methods = [
            ("GET", item.get.is_some()),
            ("POST", item.post.is_some()),
            ("PUT", item.put.is_some()),
            ("DELETE", item.delete.is_some()),
        ];
        routes.extend(
            methods
                .into_iter()
                .filter(|&(_, exists)| exists)
                .map(|(method, _)| (method, path.clone())),
        );
    }
    routes.push(("GET", "/openapi.json".to_owned()));
    routes
}

async fn unknown_route(method: Method, uri: Uri) -> Refusal {
    let known: Vec<String> = known_routes()
        .into_iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    Refusal(
        StatusCode::NOT_FOUND,
        format!(
            "no route {method} {}; known routes: {}",
            uri.path(),
            known.join(", ")
        ),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        format!(
            "{} does not take {method}; /openapi.json lists what each route takes",
            uri.path()
        ),
    )
}

/// A JSON body whose errors name the field. The content type is not looked at: there is only one.
struct JsonBody<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let route = format!("{} {}", request.method(), request.uri().path());
        let bytes = match Bytes::from_request(request, state).await {
            Ok(bytes) => bytes,
            Err(rejection) => return Err(unreadable_body(&route, rejection)),
        };
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| {
                let path = error.path().to_string();
                let place = if path == "." {
                    String::new()
                } else {
                    format!("`{path}`: ")
                };
                let status = if error.inner().is_data() {
                    StatusCode::UNPROCESSABLE_ENTITY
                } else {
                    StatusCode::BAD_REQUEST
                };
                Refusal(
                    status,
                    format!("the body of {route}: {place}{}", error.inner()),
                )
            })
            .and_then(|body| match deserializer.end() {
                Ok(()) => Ok(Self(body)),
                Err(error) => Err(Refusal(
                    StatusCode::BAD_REQUEST,
                    format!("the body of {route}: {error}"),
                )),
            })
    }
}

fn unreadable_body(route: &str, rejection: BytesRejection) -> Refusal {
    let status = rejection.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return Refusal(
            status,
            format!("the body of {route} is larger than {BODY_LIMIT} bytes: split the request"),
        );
    }
    Refusal(status, format!("the body of {route}: {rejection}"))
}

/// A backend's address as it stands in a path, IPv6 with or without brackets.
fn address_in_path(text: &str) -> Result<IpAddr, Refusal> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse().map_err(|_| {
        Refusal::from(ApiError::Invalid(format!(
            "`{text}` in the path is not an IP address: write for example 10.0.0.11 or 2001:db8::11"
        )))
    })
}

/// The daemon, its interfaces, services, counters and capacity.
#[utoipa::path(get, path = "/v1/status", tag = "reading",
    responses((status = 200, body = Status), (status = "default", body = ErrorBody)))]
async fn status(State(daemon): Daemon) -> Answer<Status> {
    ask(&daemon, Command::Status).await
}

/// Every service.
#[utoipa::path(get, path = "/v1/services", tag = "reading",
    responses((status = 200, body = Vec<ServiceSummary>), (status = "default", body = ErrorBody)))]
async fn services(State(daemon): Daemon) -> Answer<Vec<ServiceSummary>> {
    ask(&daemon, Command::Services).await
}

/// Adds a service; `service` takes the keys and values of a `[[service]]` table of sluice.toml.
#[utoipa::path(post, path = "/v1/services", tag = "changing", request_body = ServiceAdd,
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn service_add(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    JsonBody(add): JsonBody<ServiceAdd>,
) -> Answer<Changed> {
    ask(&daemon, |reply| Command::ServiceAdd { caller, add, reply }).await
}

/// One service with its backends.
#[utoipa::path(get, path = "/v1/services/{name}", tag = "reading",
    params(("name" = String, Path, description = "The service's name")),
    responses((status = 200, body = ServiceDetail), (status = "default", body = ErrorBody)))]
async fn service(State(daemon): Daemon, Path(name): Path<String>) -> Answer<ServiceDetail> {
    ask(&daemon, |reply| Command::Service { name, reply }).await
}

/// Removes a service and its backends.
#[utoipa::path(delete, path = "/v1/services/{name}", tag = "changing",
    params(("name" = String, Path, description = "The service's name")),
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn service_remove(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    Path(name): Path<String>,
) -> Answer<Changed> {
    ask(&daemon, |reply| Command::ServiceRemove {
        caller,
        name,
        reply,
    })
    .await
}

/// The backends of one service.
#[utoipa::path(get, path = "/v1/services/{name}/backends", tag = "reading",
    params(("name" = String, Path, description = "The service's name")),
    responses((status = 200, body = Vec<BackendDetail>), (status = "default", body = ErrorBody)))]
async fn service_backends(
    State(daemon): Daemon,
    Path(name): Path<String>,
) -> Answer<Vec<BackendDetail>> {
    let service = Some(name);
    ask(&daemon, |reply| Command::Backends { service, reply }).await
}

/// The backends of every service.
#[utoipa::path(get, path = "/v1/backends", tag = "reading",
    responses((status = 200, body = Vec<BackendDetail>), (status = "default", body = ErrorBody)))]
async fn backends(State(daemon): Daemon) -> Answer<Vec<BackendDetail>> {
    let service = None;
    ask(&daemon, |reply| Command::Backends { service, reply }).await
}

/// Adds a backend to a service.
#[utoipa::path(post, path = "/v1/services/{name}/backends", tag = "changing",
    params(("name" = String, Path, description = "The service's name")),
    request_body = BackendAdd,
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn backend_add(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    Path(service): Path<String>,
    JsonBody(add): JsonBody<BackendAdd>,
) -> Answer<Changed> {
    ask(&daemon, |reply| Command::BackendAdd {
        caller,
        service,
        add,
        reply,
    })
    .await
}

/// Removes a backend from a service.
#[utoipa::path(delete, path = "/v1/services/{name}/backends/{address}", tag = "changing",
    params(
        ("name" = String, Path, description = "The service's name"),
        ("address" = String, Path, description = "The backend's address")
    ),
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn backend_remove(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    Path((service, address)): Path<(String, String)>,
) -> Answer<Changed> {
    let address = address_in_path(&address)?;
    ask(&daemon, |reply| Command::BackendRemove {
        caller,
        service,
        address,
        reply,
    })
    .await
}

/// Drains, disables or activates a backend.
#[utoipa::path(put, path = "/v1/services/{name}/backends/{address}/admin", tag = "changing",
    params(
        ("name" = String, Path, description = "The service's name"),
        ("address" = String, Path, description = "The backend's address")
    ),
    request_body = AdminChange,
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn backend_admin(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    Path((service, address)): Path<(String, String)>,
    JsonBody(change): JsonBody<AdminChange>,
) -> Answer<Changed> {
    let address = address_in_path(&address)?;
    ask(&daemon, |reply| Command::BackendAdmin {
        caller,
        service,
        address,
        change,
        reply,
    })
    .await
}

/// Sets a backend's share of new flows.
#[utoipa::path(put, path = "/v1/services/{name}/backends/{address}/weight", tag = "changing",
    params(
        ("name" = String, Path, description = "The service's name"),
        ("address" = String, Path, description = "The backend's address")
    ),
    request_body = WeightChange,
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn backend_weight(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
    Path((service, address)): Path<(String, String)>,
    JsonBody(change): JsonBody<WeightChange>,
) -> Answer<Changed> {
    let address = address_in_path(&address)?;
    ask(&daemon, |reply| Command::BackendWeight {
        caller,
        service,
        address,
        change,
        reply,
    })
    .await
}

/// In what the state that holds differs from the configuration file: what was changed at run time.
#[utoipa::path(get, path = "/v1/overlay", tag = "reading",
    responses((status = 200, body = OverlayDiff), (status = "default", body = ErrorBody)))]
async fn overlay(State(daemon): Daemon) -> Answer<OverlayDiff> {
    ask(&daemon, Command::Overlay).await
}

/// Drops every run-time change: the configuration file alone holds.
#[utoipa::path(delete, path = "/v1/overlay", tag = "changing",
    responses((status = 200, body = OverlayReset), (status = "default", body = ErrorBody)))]
async fn overlay_reset(
    State(daemon): Daemon,
    ConnectInfo(Peer(caller)): ConnectInfo<Peer>,
) -> Answer<OverlayReset> {
    ask(&daemon, |reply| Command::OverlayReset { caller, reply }).await
}

/// The configuration file with the run-time changes upon it, as TOML. Drained and disabled backends have no key in it; they are
/// named in comments at its beginning.
#[utoipa::path(get, path = "/v1/config", tag = "reading",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = ErrorBody)
    ))]
async fn merged_config(State(daemon): Daemon) -> Result<String, Refusal> {
    let Json(toml) = ask(&daemon, Command::Config).await?;
    Ok(toml)
}

/// Reads the configuration file again; on any error the older state keeps running.
#[utoipa::path(post, path = "/v1/reload", tag = "changing",
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn reload(State(daemon): Daemon) -> Answer<Changed> {
    ask(&daemon, Command::Reload).await
}

/// Takes the data path down and ends the daemon.
#[utoipa::path(post, path = "/v1/detach", tag = "changing",
    responses((status = 200, body = Changed), (status = "default", body = ErrorBody)))]
async fn detach(State(daemon): Daemon) -> Answer<Changed> {
    ask(&daemon, Command::Detach).await
}

async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}
