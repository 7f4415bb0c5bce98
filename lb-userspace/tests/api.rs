//! The control socket over a real Unix socket: every route, every way to be refused, and the socket's life.

mod served;

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use lb_userspace::api::client::{Client, ClientError};
use lb_userspace::api::dto::*;
use lb_userspace::api::server;
use lb_userspace::model::Admin;
use serde_json::json;
use served::Served;

/// One request, spoken by hand: what any HTTP client would see.
fn raw(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("the socket answers");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A server that refuses a large body answers before it has read it all.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status in {answer:?}"));
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

/// The `error` of a refusal, which must be an `ErrorBody` and nothing else.
fn refusal(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, body) = raw(socket, method, path, body);
    let ErrorBody { error } =
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error} in {body:?}"));
    (status, error)
}

fn me() -> String {
    nix::unistd::User::from_uid(nix::unistd::getuid())
        .unwrap()
        .map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name)
}

#[tokio::test]
async fn every_reading_route_answers_with_its_type() {
    let served = Served::start();
    let client = Client::new(served.socket.clone());
    assert_eq!(client.status().await.unwrap(), served::status());
    assert_eq!(client.services().await.unwrap(), served::status().services);
    let web = client.service("web").await.unwrap();
    assert_eq!(
        (web.summary.name.as_str(), web.backends.len()),
        ("web", 2),
        "the detail of the service asked for"
    );
    assert_eq!(client.backends(None).await.unwrap(), served::all_backends());
    assert_eq!(client.overlay().await.unwrap(), served::overlay());
    assert_eq!(client.merged_config().await.unwrap(), served::MERGED);
    let of_dns6 = client.backends(Some("dns6")).await.unwrap();
    assert_eq!(of_dns6.len(), 1);
    assert_eq!(of_dns6[0].address.to_string(), "2001:db8::11");
}

#[tokio::test]
async fn every_change_reaches_the_owner_with_its_caller() {
    let served = Served::start();
    let client = Client::new(served.socket.clone());
    let v4 = "10.0.0.12".parse().unwrap();
    let v6 = "2001:db8::11".parse().unwrap();
    let add = ServiceAdd {
        service: json!({"name": "new", "vip": "203.0.113.20:80"}),
    };
    let changed = client.service_add(&add).await.unwrap();
    assert!(changed.changed);
    assert_eq!(
        (changed.slots_moved, changed.slots_moved_in_excess),
        (341, 3)
    );
    client.service_remove("dns6").await.unwrap();
    let backend = BackendAdd {
        address: "10.0.0.13".parse().unwrap(),
        weight: Some(5),
        replaces: None,
    };
    client.backend_add("web", &backend).await.unwrap();
    client.backend_remove("dns6", v6).await.unwrap();
    let drain = AdminChange {
        admin: Admin::Draining,
        reason: Some("update".to_owned()),
        drain: Some(DrainUntil {
            until_empty: true,
            timeout_seconds: Some(600),
        }),
    };
    client.backend_admin("web", v4, &drain).await.unwrap();
    client
        .backend_weight("dns6", v6, &WeightChange { weight: 7 })
        .await
        .unwrap();
    let reset = client.overlay_reset().await.unwrap();
    assert_eq!(reset.dropped, served::overlay().differences);
    client.detach().await.unwrap();
    let me = me();
    assert_eq!(
        *served.seen.lock().unwrap(),
        [
            format!(r#"{me} adds service {{"name":"new","vip":"203.0.113.20:80"}}"#),
            format!("{me} removes service dns6"),
            format!("{me} adds 10.0.0.13 to web, weight Some(5)"),
            format!("{me} removes 2001:db8::11 from dns6"),
            format!(
                "{me} makes 10.0.0.12 of web draining, reason Some(\"update\"), \
                 until DrainUntil {{ until_empty: true, timeout_seconds: Some(600) }}"
            ),
            format!("{me} gives 2001:db8::11 of dns6 weight 7"),
            format!("{me} drops 2 run-time changes"),
            "detached from eth0".to_owned(),
        ]
    );
}

#[tokio::test]
async fn refusals_keep_their_kind_and_text() {
    let served = Served::start();
    let client = Client::new(served.socket.clone());
    let refused = |result: Result<Changed, ClientError>| match result {
        Err(ClientError::Refused(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert_eq!(
        refused(client.service_remove("nope").await),
        ApiError::NotFound("no service nope; there are: web, dns6".to_owned())
    );
    let twice = ServiceAdd {
        service: json!({"name": "web", "vip": "203.0.113.10:80"}),
    };
    assert_eq!(
        refused(client.service_add(&twice).await),
        ApiError::Conflict("service web exists".to_owned())
    );
    let bare = ServiceAdd {
        service: json!({"name": "x"}),
    };
    assert!(matches!(
        refused(client.service_add(&bare).await),
        ApiError::Invalid(text) if text.contains("service.vip")
    ));
    assert!(matches!(
        refused(client.reload().await),
        ApiError::Failed(text) if text.contains("unknown key")
    ));
}

#[test]
fn statuses_follow_the_kind_of_refusal() {
    let served = Served::start();
    let cases = [
        ("DELETE", "/v1/services/nope", "", 404),
        (
            "POST",
            "/v1/services",
            r#"{"service":{"name":"web","vip":"x"}}"#,
            409,
        ),
        ("POST", "/v1/services", r#"{"service":{}}"#, 422),
        ("POST", "/v1/reload", "", 500),
    ];
    for (method, path, body, expected) in cases {
        let (status, error) = refusal(&served.socket, method, path, body);
        assert_eq!(status, expected, "{method} {path}: {error}");
    }
}

#[test]
fn errors_in_a_body_name_the_field() {
    let served = Served::start();
    let weight = "/v1/services/web/backends/10.0.0.11/weight";
    let cases = [
        ("PUT", weight, "{}", 422, "missing field `weight`"),
        (
            "PUT",
            weight,
            r#"{"weight":1,"wieght":2}"#,
            422,
            "unknown field `wieght`",
        ),
        (
            "PUT",
            weight,
            r#"{"weight":-1}"#,
            422,
            "`weight`: invalid value",
        ),
        ("PUT", weight, r#"{"weight":1"#, 400, "EOF while parsing"),
        (
            "PUT",
            weight,
            r#"{"weight":1} x"#,
            400,
            "trailing characters",
        ),
        (
            "PUT",
            "/v1/services/web/backends/10.0.0.11/admin",
            r#"{"admin":"asleep"}"#,
            422,
            "`admin`: unknown variant `asleep`, expected one of `active`, `draining`, `disabled`",
        ),
        (
            "POST",
            "/v1/services/web/backends",
            r#"{"address":"ten"}"#,
            422,
            "`address`: invalid IP address syntax",
        ),
        (
            "POST",
            "/v1/services",
            "",
            400,
            "the body of POST /v1/services: ",
        ),
        (
            "DELETE",
            "/v1/services/web/backends/10.0.0.256",
            "",
            422,
            "`10.0.0.256` in the path is not an IP address",
        ),
    ];
    for (method, path, body, expected, text) in cases {
        let (status, error) = refusal(&served.socket, method, path, body);
        assert_eq!(status, expected, "{method} {path} {body}: {error}");
        assert!(error.contains(text), "{method} {path} {body}: {error}");
    }
}

#[test]
fn an_ipv6_address_in_a_path_may_have_brackets() {
    let served = Served::start();
    for path in [
        "/v1/services/dns6/backends/[2001:db8::11]",
        "/v1/services/dns6/backends/%5B2001:db8::11%5D",
        "/v1/services/dns6/backends/2001:DB8:0::11",
    ] {
        let (status, body) = raw(&served.socket, "DELETE", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        assert!(body.contains("removes 2001:db8::11 from dns6"), "{body}");
    }
}

#[test]
fn unknown_routes_and_methods_say_what_is_known() {
    let served = Served::start();
    let (status, error) = refusal(&served.socket, "GET", "/v2/status", "");
    assert_eq!(status, 404);
    for known in [
        "no route GET /v2/status",
        "GET /v1/status",
        "PUT /v1/services/{name}/backends/{address}/weight",
        "POST /v1/detach",
        "GET /openapi.json",
    ] {
        assert!(error.contains(known), "{known} not in {error}");
    }
    let (status, error) = refusal(&served.socket, "POST", "/v1/status", "");
    assert_eq!(status, 405);
    assert!(error.contains("/v1/status does not take POST"), "{error}");
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let served = Served::start();
    let fits = format!(r#"{{"service":{{"vip":"{}"}}}}"#, "x".repeat(200 * 1024));
    let (status, _) = raw(&served.socket, "POST", "/v1/services", &fits);
    assert_eq!(status, 200, "200 KiB are allowed");
    let large = format!(r#"{{"service":{{"vip":"{}"}}}}"#, "x".repeat(300 * 1024));
    let (status, error) = refusal(&served.socket, "POST", "/v1/services", &large);
    assert_eq!(status, 413);
    assert!(error.contains("larger than 262144 bytes"), "{error}");
}

#[test]
fn the_openapi_document_is_the_one_in_docs() {
    let served = Served::start();
    let (status, body) = raw(&served.socket, "GET", "/openapi.json", "");
    assert_eq!(status, 200);
    let served: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(served["paths"]["/v1/services/{name}/backends/{address}/admin"]["put"].is_object());
    assert!(served["components"]["schemas"]["ErrorBody"].is_object());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let text = serde_json::to_string_pretty(&served).unwrap() + "\n";
    if std::env::var_os("SLUICE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let documented = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        documented == text,
        "docs/openapi.json is not what is served: run this test with SLUICE_UPDATE_DOCS=1"
    );
}

#[tokio::test]
async fn an_ended_owner_loop_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sluice.sock");
    let listener = server::bind(&socket).unwrap();
    let (commands, receiver) = tokio::sync::mpsc::channel(1);
    drop(receiver);
    let server = tokio::spawn(server::serve(listener, commands, std::future::pending()));
    let error = Client::new(socket).status().await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(ApiError::Failed(text)) if text.contains("the daemon is ending")),
        "{error:?}"
    );
    server.abort();
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
    let mut served = Served::start();
    let metadata = std::fs::symlink_metadata(&served.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o7777, 0o660);
    let parent = std::fs::metadata(served.socket.parent().unwrap()).unwrap();
    assert_eq!(parent.permissions().mode() & 0o7777, 0o755);
    served.stop().unwrap();
    assert!(!served.socket.exists(), "removed at the end");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sluice.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "as a killed daemon leaves it");
    let live = server::bind(&socket).expect("a stale socket is no obstacle");

    let error = server::bind(&socket).unwrap_err().to_string();
    let expected = format!("another sluice (pid {}) is serving", std::process::id());
    assert!(error.contains(&expected), "{error}");
    drop(live);

    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = server::bind(&file).unwrap_err().to_string();
    assert!(error.contains("is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn the_ways_not_to_reach_a_daemon_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.sock");
    let error = Client::new(missing.clone()).status().await.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    for part in [
        missing.to_str().unwrap(),
        "no such socket",
        "sluice run",
        "--socket",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }

    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let error = Client::new(stale).status().await.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[tokio::test]
async fn a_peer_that_is_not_sluice_is_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    let error = Client::new(socket).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 1);
    other.join().unwrap();
}
