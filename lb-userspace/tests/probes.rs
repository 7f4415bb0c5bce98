//! The prober against real servers on loopback: what each fault is called, and how soon it is noticed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_userspace::health::probe::{self, ProbeFailure};
use lb_userspace::health::{HealthEvent, ProbeTarget, Prober};
use lb_userspace::model::{Health, ProbeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(200);
/// What a loaded machine may add to any of the promised times.
const SLACK: Duration = Duration::from_millis(600);

fn target(address: SocketAddr, kind: ProbeKind) -> ProbeTarget {
    ProbeTarget {
        address,
        kind,
        interval: INTERVAL,
        timeout: TIMEOUT,
        rise: 2,
        fall: 3,
    }
}

fn http(path: &str) -> ProbeKind {
    ProbeKind::Http {
        path: path.into(),
        host: None,
        expect: (200, 399),
    }
}

/// A server that answers every connection with `answer` (closing at once when empty) and tells what it was asked.
struct Server {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<String>,
    task: AbortOnDropHandle<()>,
}

impl Server {
    async fn start(bind: &str, answer: &'static str) -> Self {
        Self::on(bind.parse().unwrap(), answer).await
    }

    async fn on(bind: SocketAddr, answer: &'static str) -> Self {
        let socket = if bind.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(bind).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    let Ok(read) = stream.read(&mut request).await else {
                        return;
                    };
                    let _ = tell.send(String::from_utf8_lossy(&request[..read]).into_owned());
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Self {
            address,
            requests,
            task: AbortOnDropHandle::new(task),
        }
    }

    async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

async fn once(address: SocketAddr, kind: ProbeKind) -> Result<Duration, String> {
    once_within(Duration::from_secs(5), address, kind).await
}

async fn once_within(
    timeout: Duration,
    address: SocketAddr,
    kind: ProbeKind,
) -> Result<Duration, String> {
    let target = ProbeTarget {
        timeout,
        ..target(address, kind)
    };
    probe::once(&target).await.map_err(|failure| match failure {
        ProbeFailure::Target(words) => words,
        ProbeFailure::Local(words) => panic!("blamed on this host: {words}"),
    })
}

async fn next(events: &mut mpsc::Receiver<HealthEvent>, within: Duration) -> HealthEvent {
    tokio::time::timeout(within, events.recv())
        .await
        .unwrap_or_else(|_| panic!("no event within {within:?}"))
        .expect("the prober lives")
}

#[tokio::test]
async fn tcp_up_and_refused() {
    let server = Server::start("127.0.0.1:0", "").await;
    assert!(once(server.address, ProbeKind::Tcp).await.unwrap() > Duration::ZERO);
    let address = server.stop().await;
    assert_eq!(
        once(address, ProbeKind::Tcp).await.unwrap_err(),
        "connection refused"
    );
}

#[tokio::test]
async fn tcp_probes_leave_nothing_in_time_wait() {
    let server = Server::start("127.0.0.1:0", "").await;
    for _ in 0..20 {
        once(server.address, ProbeKind::Tcp).await.unwrap();
    }
    let port = format!(":{:04X}", server.address.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // Columns: number, local, remote, state; 06 is TIME_WAIT.
    let waiting = sockets
        .lines()
        .filter(|line| line.contains(&port))
        .filter(|line| line.split_whitespace().nth(3) == Some("06"));
    assert_eq!(waiting.count(), 0);
}

#[tokio::test]
async fn http_up_asks_as_told() {
    let mut server = Server::start("127.0.0.1:0", OK).await;
    once(server.address, http("/healthz?full=1")).await.unwrap();
    let request = server.requests.recv().await.unwrap().to_lowercase();
    assert!(
        request.starts_with("get /healthz?full=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nhost: {}\r\n", server.address)),
        "{request}"
    );
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");

    let kind = ProbeKind::Http {
        path: "/".into(),
        host: Some("shop.example".into()),
        expect: (200, 200),
    };
    once(server.address, kind).await.unwrap();
    assert!(
        server
            .requests
            .recv()
            .await
            .unwrap()
            .contains("host: shop.example\r\n")
    );
}

#[tokio::test]
async fn http_over_ipv6_brackets_the_host() {
    let mut server = Server::start("[::1]:0", OK).await;
    once(server.address, http("/")).await.unwrap();
    let request = server.requests.recv().await.unwrap();
    assert!(
        request.contains(&format!("host: [::1]:{}\r\n", server.address.port())),
        "{request}"
    );
}

#[tokio::test]
async fn http_faults_have_names() {
    for (answer, words) in [
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            "HTTP 503 (expected 200-399)",
        ),
        ("HTTP/1.0 404 Gone\r\n\r\n", "HTTP 404 (expected 200-399)"),
        ("", "connection closed before an answer"),
        ("HTTP/1.1 200", "connection closed before an answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer is not HTTP/1.1"),
    ] {
        let server = Server::start("127.0.0.1:0", answer).await;
        assert_eq!(
            once(server.address, http("/")).await.unwrap_err(),
            words,
            "for {answer:?}"
        );
    }
}

#[tokio::test]
async fn http_does_not_wait_for_an_endless_body() {
    let server = Server::start(
        "127.0.0.1:0",
        "HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\nbeginning",
    )
    .await;
    let mut target = target(server.address, http("/"));
    target.timeout = Duration::from_secs(5);
    let start = Instant::now();
    probe::once(&target).await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "took {:?}",
        start.elapsed()
    );
}

/// The body is given 100 ms of its own: they must not count against a timeout shorter than that.
#[tokio::test]
async fn the_verdict_falls_at_the_status_line() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\nbeginning";
        stream.write_all(head.as_bytes()).await.unwrap();
        // The rest never comes, and the connection stays.
        std::future::pending::<()>().await;
    }));
    once_within(Duration::from_millis(95), address, http("/"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_accepts_and_hangs_times_out() {
    // Never accepted by the program, only by the kernel's backlog.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(
        once_within(TIMEOUT, address, http("/")).await.unwrap_err(),
        "no answer within 200ms"
    );
}

#[tokio::test]
async fn a_path_no_request_can_carry_is_our_fault() {
    let failure = probe::once(&target("127.0.0.1:1".parse().unwrap(), http("/a b")))
        .await
        .unwrap_err();
    let ProbeFailure::Local(words) = failure else {
        panic!("{failure:?}")
    };
    assert!(words.contains("`/a b`"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dies_and_returns_in_time() {
    let server = Server::start("127.0.0.1:0", OK).await;
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    let target = target(server.address, http("/"));
    prober.watch([target.clone()].into());

    let event = next(&mut flips, INTERVAL + TIMEOUT + SLACK).await;
    assert_eq!((event.health, &event.target), (Health::Up, &target));
    tokio::time::sleep(INTERVAL * 2).await;

    let address = server.stop().await;
    let died = Instant::now();
    let event = next(&mut flips, INTERVAL * 3 + TIMEOUT + SLACK).await;
    assert_eq!(
        (event.health, event.reason.as_str()),
        (Health::Down, "connection refused")
    );
    assert!(
        died.elapsed() > INTERVAL,
        "three failures do not fit into one interval"
    );
    let (health, said, since) = prober.current(&target).unwrap();
    assert_eq!(
        (health, said.as_str()),
        (Health::Down, "connection refused")
    );
    assert!(since.elapsed() < SLACK);

    let server = Server::on(address, OK).await;
    let event = next(&mut flips, INTERVAL * 2 + TIMEOUT + SLACK).await;
    assert_eq!(event.health, Health::Up);
    assert!(event.reason.starts_with("answered in "), "{}", event.reason);

    let statistics = prober.statistics();
    let [one] = statistics.as_slice() else {
        panic!("{statistics:?}")
    };
    assert!(one.failures >= 3 && one.successes >= 4, "{one:?}");
    assert_eq!(
        one.buckets.iter().sum::<u64>(),
        one.count_total(),
        "{one:?}"
    );
    assert!(one.sum >= one.last_duration && one.last_duration > Duration::ZERO);
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_server_is_down_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = AbortOnDropHandle::new(tokio::spawn(async move {
        // Two good answers, then silence with the port open.
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
        drop(listener);
    }));
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    prober.watch([target(address, http("/"))].into());
    assert_eq!(
        next(&mut flips, Duration::from_secs(1)).await.health,
        Health::Up
    );
    let event = next(&mut flips, INTERVAL * 4 + TIMEOUT + SLACK).await;
    assert_eq!(
        (event.health, event.reason.as_str()),
        (Health::Down, "no answer within 200ms")
    );
    drop(serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_keeps_what_it_knows_of_kept_targets() {
    let first = Server::start("127.0.0.1:0", OK).await;
    let second = Server::start("127.0.0.1:0", OK).await;
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    let (kept, gone) = (
        target(first.address, http("/")),
        target(second.address, http("/")),
    );
    prober.watch(HashSet::from([kept.clone(), gone.clone()]));
    for _ in 0..2 {
        assert_eq!(
            next(&mut flips, Duration::from_secs(1)).await.health,
            Health::Up
        );
    }
    let (_, _, since) = prober.current(&kept).unwrap();

    let added = target(second.address, ProbeKind::Tcp);
    prober.watch(HashSet::from([kept.clone(), added.clone()]));
    assert_eq!(prober.current(&gone), None);
    assert_eq!(
        prober
            .current(&kept)
            .map(|(health, _, since)| (health, since)),
        Some((Health::Up, since))
    );
    assert_eq!(
        prober
            .current(&added)
            .map(|(health, said, _)| (health, said)),
        Some((Health::Unknown, "not probed yet".into()))
    );
    let event = next(&mut flips, Duration::from_secs(1)).await;
    assert_eq!(event.target, added, "only the new target has news");
    assert_eq!(prober.statistics().len(), 2);

    // The same set again changes nothing, and a vanished target is probed no more.
    prober.watch(HashSet::from([kept.clone(), added]));
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(flips.try_recv().is_err());
    let mut second = second;
    while second.requests.try_recv().is_ok() {}
    tokio::time::sleep(INTERVAL * 3).await;
    while let Ok(request) = second.requests.try_recv() {
        assert!(
            !request.starts_with("GET"),
            "a target that is not watched was asked"
        );
    }
}

/// What a reload does that changes a probe's settings: the backend is known to be up, and one failure is not news.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_target_goes_on_from_what_is_known() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    let target = target(address, ProbeKind::Tcp);
    let start = Instant::now();
    prober.watch_from([(target.clone(), Some((Health::Up, "answered".into())))]);
    let (health, said, _) = prober.current(&target).unwrap();
    assert_eq!((health, said.as_str()), (Health::Up, "answered"));

    let event = next(&mut flips, INTERVAL * 4 + SLACK).await;
    assert_eq!(event.health, Health::Down);
    // Three failures, the second and third after half an interval each, shortened by at most a tenth.
    assert!(
        start.elapsed() > INTERVAL * 8 / 10,
        "one failure decided, after {:?}",
        start.elapsed()
    );
    let [one] = prober.statistics().try_into().unwrap();
    assert_eq!(one.failures, 3);
}

/// Whoever only knows that a backend was down before learns why it is, once.
#[tokio::test]
async fn what_was_presumed_is_confirmed_once() {
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = target(closed.local_addr().unwrap(), ProbeKind::Tcp);
    drop(closed);
    prober.watch_from([(target, Some((Health::Down, "failing before".into())))]);
    let event = next(&mut flips, INTERVAL + SLACK).await;
    assert_eq!(event.health, Health::Down);
    assert!(event.reason.contains("refused"), "{}", event.reason);
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(flips.try_recv().is_err(), "told twice");
}

/// Known to be down is of no account once nothing probes any more.
#[tokio::test]
async fn what_is_no_longer_probed_is_up() {
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    let target = target("192.0.2.1:80".parse().unwrap(), ProbeKind::None);
    prober.watch_from([(target, Some((Health::Down, "HTTP 503".into())))]);
    assert_eq!(next(&mut flips, SLACK).await.health, Health::Up);
}

#[tokio::test]
async fn what_is_not_probed_is_up() {
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    let target = target("192.0.2.1:80".parse().unwrap(), ProbeKind::None);
    prober.watch([target.clone()].into());
    let event = next(&mut flips, SLACK).await;
    assert_eq!(
        event,
        HealthEvent {
            target,
            health: Health::Up,
            reason: "not probed".into()
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_targets_get_a_verdict_soon() {
    let server = Server::start("127.0.0.1:0", "").await;
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    // Distinct by their `fall`, so that each is probed although the address is the same.
    let targets: HashSet<_> = (1..=3_000)
        .map(|fall| ProbeTarget {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            fall,
            ..target(server.address, ProbeKind::Tcp)
        })
        .collect();
    let start = Instant::now();
    prober.watch(targets);
    for _ in 0..3_000 {
        assert_eq!(
            next(&mut flips, Duration::from_secs(10)).await.health,
            Health::Up
        );
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_handle_stops_everything() {
    let mut server = Server::start("127.0.0.1:0", OK).await;
    let (events, mut flips) = mpsc::channel(16);
    let prober = Prober::spawn(events);
    prober.watch([target(server.address, http("/"))].into());
    next(&mut flips, Duration::from_secs(1)).await;
    drop(prober);
    assert!(
        tokio::time::timeout(SLACK, flips.recv())
            .await
            .expect("the channel closes")
            .is_none()
    );
    while server.requests.try_recv().is_ok() {}
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(server.requests.try_recv().is_err(), "still probed");
}
