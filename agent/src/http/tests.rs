use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::control::fake::FakeAgent;
use crate::render::tests::sample;
use crate::render::{self, View};

struct Served {
    agent: FakeAgent,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn port(address: &ListenAddress) -> SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Off | ListenAddress::Unix(_) => panic!("{address} is no port"),
    }
}

fn served(agent: FakeAgent) -> Served {
    let runtime = runtime();
    let _entered = runtime.enter();
    let server = StatusServer::bind(&"127.0.0.1:0".parse().unwrap()).unwrap().unwrap();
    let address = port(server.address());
    runtime.spawn(server.serve(agent.feed()));
    drop(_entered);
    Served { agent, address, _runtime: runtime }
}

struct Answer {
    code: u16,
    head: String,
    body: String,
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { code, head: head.to_owned(), body: body.to_owned() }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let host = if headers.to_ascii_lowercase().contains("host:") { "" } else { "Host: 127.0.0.1\r\n" };
    exchange(
        connect(address),
        &format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n"),
    )
}

fn get(served: &Served, path: &str) -> Answer {
    request(served.address, "GET", path, "")
}

#[test]
fn callers_that_say_nothing_or_half_of_it_do_not_keep_others_waiting_for_long() {
    let served = served(FakeAgent::new(sample()));
    let callers: Vec<TcpStream> = (0..listener::MAX_CONNECTIONS)
        .map(|number| {
            let mut stream = connect(served.address);
            match number % 3 {
                0 => {}
                1 => stream.write_all(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n").unwrap(),
                _ => {
                    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
                    let mut first = [0];
                    stream.read_exact(&mut first).unwrap();
                }
            }
            stream
        })
        .collect();
    let started = std::time::Instant::now();
    assert_eq!(get(&served, "/healthz").code, 200);
    assert!(started.elapsed() < listener::ASKING * 2, "it took {:?}", started.elapsed());
    drop(callers);
}

#[test]
fn status_is_what_the_command_line_prints() {
    let served = served(FakeAgent::new(sample()));
    let views = [
        ("/status", View::Summary),
        ("/status/connections", View::Connections),
        ("/status/peers", View::Peers),
        ("/status/ipam", View::Ipam),
        ("/status/targets", View::Targets),
    ];
    for (path, view) in views {
        let answer = get(&served, path);
        assert_eq!((answer.code, answer.body), (200, render::text(&sample(), view)), "{path}");
        let answer = request(served.address, "GET", path, "Accept: application/json\r\n");
        assert_eq!((answer.code, answer.body), (200, render::json(&sample(), view).unwrap()), "{path}");
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    }
}

#[test]
fn an_agent_that_is_not_ready_says_so_in_the_code_and_shows_its_status_all_the_same() {
    let served = served(FakeAgent::new(sample()));
    served.agent.change(|status| status.waiting_for = vec!["waiting for an address".to_owned()]);
    let answer = get(&served, "/status");
    assert_eq!(answer.code, 503);
    assert!(answer.body.contains("Ready: no, waiting for an address"), "{}", answer.body);
    let answer = get(&served, "/readyz");
    assert_eq!((answer.code, answer.body.as_str()), (503, "waiting for an address\n"));
    assert_eq!(get(&served, "/healthz").code, 200);
    assert_eq!(get(&served, "/status/peers").code, 200);
    served.agent.change(|status| status.waiting_for.clear());
    assert_eq!(get(&served, "/readyz").code, 200);
}

#[test]
fn the_report_is_the_whole_document_or_one_value() {
    let served = served(FakeAgent::new(sample()));
    let whole: Status = serde_json::from_str(&get(&served, "/report").body).unwrap();
    assert_eq!(whole, sample());
    assert_eq!(get(&served, "/report?format=/ipam/range").body, "10.32.0.0/12\n");
    let refused = get(&served, "/report?format=%7B%7B.IPAM%7D%7D");
    assert_eq!(refused.code, 400);
    assert!(refused.body.contains("JSON pointer"), "{}", refused.body);
}

#[test]
fn addresses_have_the_shape_that_weave_gave_them() {
    let served = served(FakeAgent::new(sample()));
    let answer: Value = serde_json::from_str(&get(&served, "/ip").body).unwrap();
    assert_eq!(answer["owned"][0]["containerid"], "weave:expose");
    assert_eq!(answer["owned"][0]["addrs"][0], "10.32.0.1/12");
    assert_eq!(get(&served, "/ip/weave:expose").body, "10.32.0.1/12\n");
    assert_eq!(get(&served, "/ip/a1b2c3d4e5f60123456789").body, "10.32.0.2/12\n");
    let missing = get(&served, "/ip/a1b2");
    assert_eq!(missing.code, 404);
    assert!(missing.body.contains("no container \"a1b2\""), "{}", missing.body);
}

#[test]
fn the_ring_is_awaited() {
    let served = served(FakeAgent::new(sample()));
    assert_eq!(get(&served, "/ring").code, 200);
    served.agent.change(|status| status.ipam = None);
    let address = served.address;
    let waiting = std::thread::spawn(move || request(address, "GET", "/ring", ""));
    served.agent.change(|status| status.ipam = sample().ipam);
    assert_eq!(waiting.join().unwrap().code, 200);
}

#[test]
fn nothing_can_be_changed() {
    let served = served(FakeAgent::new(sample()));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"] {
        for path in ["/connect", "/ip/x", "/status", "/peer"] {
            let answer = request(served.address, method, path, "Content-Length: 0\r\n");
            assert_eq!(answer.code, 405, "{method} {path}");
            assert!(answer.body.contains("weave connect"), "{method} {path}: {}", answer.body);
            assert!(answer.head.contains("allow: GET, HEAD"), "{}", answer.head);
        }
    }
    assert_eq!(served.agent.heard(), Vec::<String>::new());
    assert_eq!(request(served.address, "HEAD", "/status", "").code, 200);
}

#[test]
fn an_unknown_path_is_answered_with_those_that_are() {
    let served = served(FakeAgent::new(sample()));
    let answer = get(&served, "/statsu");
    assert_eq!(answer.code, 404);
    assert!(answer.body.contains("nothing at \"/statsu\"") && answer.body.contains("/status/connections"));
}

#[test]
fn a_foreign_name_in_the_host_header_is_refused() {
    let served = served(FakeAgent::new(sample()));
    let asked_as = |host: &str| request(served.address, "GET", "/status", &format!("Host: {host}\r\n")).code;
    for host in ["127.0.0.1:6784", "localhost", "LOCALHOST:6784", "[::1]:6784", "10.0.0.7", "[fd00::1]"] {
        assert_eq!(asked_as(host), 200, "{host}");
    }
    for host in
        ["evil.example", "evil.example:6784", "127.0.0.1.evil.example", "localhost.evil", "[::1]x", "a:b"]
    {
        assert_eq!(asked_as(host), 403, "{host}");
    }
    let absolute = exchange(
        connect(served.address),
        "GET http://evil.example/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(absolute.code, 403);
}

#[test]
fn garbage_is_answered_and_the_server_lives_on() {
    let served = served(FakeAgent::new(sample()));
    for garbage in ["\0\0\0\0\r\n\r\n", "{\"command\":\"status\"}\n\r\n\r\n", "GET\r\n\r\n"] {
        assert_eq!(exchange(connect(served.address), garbage).code, 400, "{garbage:?}");
    }
    let huge = format!("GET /{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "x".repeat(1_000_000));
    let mut stream = connect(served.address);
    // The server may close before all of it is written.
    let _ = stream.write_all(huge.as_bytes());
    drop(stream);
    assert_eq!(get(&served, "/status").code, 200);
}

#[test]
fn more_callers_than_slots_wait_for_their_turn() {
    let served = served(FakeAgent::new(sample()));
    let idle: Vec<_> = (0..listener::MAX_CONNECTIONS).map(|_| connect(served.address)).collect();
    let mut late = connect(served.address);
    late.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
    drop(idle);
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn the_metrics_server_serves_metrics_only() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let agent = FakeAgent::new(sample());
    let server = MetricsServer::bind(&"127.0.0.1:0".parse().unwrap()).unwrap().unwrap();
    let address = port(server.address());
    runtime.spawn(server.serve(agent.feed()));
    // A scraper in the cluster names it as it likes.
    let answer = request(address, "GET", "/metrics", "Host: node1.example:6782\r\n");
    assert_eq!(answer.code, 200);
    assert!(answer.head.contains("text/plain; version=0.0.4"), "{}", answer.head);
    assert!(answer.body.contains("\nweave_max_ips 1048576.0\n"), "{}", answer.body);
    for path in ["/status", "/report", "/ip", "/"] {
        assert_eq!(request(address, "GET", path, "").code, 404, "{path}");
    }
    assert_eq!(request(address, "POST", "/metrics", "Content-Length: 0\r\n").code, 405);
}

#[test]
fn a_unix_socket_serves_as_well_and_a_dead_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let runtime = runtime();
    let _entered = runtime.enter();
    let agent = FakeAgent::new(sample());
    let server = MetricsServer::bind(&ListenAddress::Unix(path.clone())).unwrap().unwrap();
    runtime.spawn(server.serve(agent.feed()));
    let stream = UnixStream::connect(&path).unwrap();
    let answer = exchange(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.code, 200);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_the_flag_that_chooses_another() {
    let first = StatusServer::bind(&"127.0.0.1:0".parse().unwrap()).unwrap().unwrap();
    let error = StatusServer::bind(first.address()).unwrap_err().to_string();
    assert!(error.contains(&first.address().to_string()) && error.contains("--http-addr"), "{error}");
    assert!(StatusServer::bind(&ListenAddress::Off).unwrap().is_none());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(MetricsServer::bind(&ListenAddress::Unix(file.clone())).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
