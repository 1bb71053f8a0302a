use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use weave_proto::Nickname;
use weave_proto::local::control::{Answer, Done, FailureCode, MAX_REQUEST, SOCKET};
use weave_proto::local::status::Status;

use super::fake::FakeAgent;
use super::*;
use crate::render::tests::{peer, sample};

/// A served socket in a directory of its own.
struct Served {
    dir: TempDir,
    agent: FakeAgent,
    runtime: tokio::runtime::Runtime,
}

fn served(agent: FakeAgent) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let socket = runtime.block_on(async { ControlSocket::bind(dir.path()).unwrap() });
    let (feed, control) = (agent.feed(), agent.clone());
    runtime.spawn(async move { socket.serve(feed, control).await });
    Served { dir, agent, runtime }
}

/// The answer to raw bytes; the caller has said all it will say.
fn exchange(run_dir: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(run_dir.join(SOCKET)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The agent may refuse to read all of it.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ask(served: &Served, line: &str) -> Answer {
    serde_json::from_str(&exchange(served.dir.path(), line.as_bytes())).unwrap()
}

fn done(answer: Answer) -> String {
    match answer {
        Answer::Done(Done { message }) => message,
        other @ (Answer::Status(_) | Answer::Failed(_)) => panic!("{other:?}"),
    }
}

fn failed(answer: Answer) -> (FailureCode, String) {
    match answer {
        Answer::Failed(failure) => (failure.code, failure.message),
        other @ (Answer::Status(_) | Answer::Done(_)) => panic!("{other:?}"),
    }
}

#[test]
fn the_status_document_comes_back_whole() {
    let served = served(FakeAgent::new(sample()));
    assert_eq!(ask(&served, "{\"command\":\"status\"}\n"), Answer::Status(Box::new(sample())));
}

#[test]
fn a_request_need_not_end_with_a_line_end_if_the_caller_hangs_up() {
    let served = served(FakeAgent::new(sample()));
    assert!(matches!(ask(&served, "{\"command\":\"status\"}"), Answer::Status(_)));
}

#[test]
fn connect_and_forget_reach_the_brain_and_say_what_they_did() {
    let served = served(FakeAgent::new(sample()));
    let message = done(ask(&served, "{\"command\":\"connect\",\"peers\":[\"10.0.0.7\",\"[fd00::7]:1\"]}\n"));
    assert_eq!(message, "looking for 10.0.0.7, [fd00::7]:1");
    let message = done(ask(&served, "{\"command\":\"forget\",\"peers\":[\"10.0.0.7\",\"node5\"]}\n"));
    assert_eq!(message, "looking for 10.0.0.7 no longer (node5: no such target)");
    let message = done(ask(&served, "{\"command\":\"connect\",\"peers\":[],\"replace\":true}\n"));
    assert!(message.starts_with("looking for no peer any more"), "{message}");
    assert_eq!(served.agent.feed().borrow().router.targets, []);
}

#[test]
fn one_bad_peer_address_changes_nothing_at_all() {
    let served = served(FakeAgent::new(sample()));
    let answer = ask(&served, "{\"command\":\"connect\",\"peers\":[\"10.0.0.7\",\"10.0.0.300\"]}\n");
    let (code, message) = failed(answer);
    assert_eq!(code, FailureCode::Invalid);
    assert!(message.contains("10.0.0.300"), "{message}");
    assert_eq!(served.agent.heard(), Vec::<String>::new());
}

#[test]
fn a_connect_without_peers_is_refused_unless_it_replaces() {
    let served = served(FakeAgent::new(sample()));
    let (code, _) = failed(ask(&served, "{\"command\":\"connect\",\"peers\":[]}\n"));
    assert_eq!(code, FailureCode::Invalid);
    let (code, _) = failed(ask(&served, "{\"command\":\"forget\",\"peers\":[]}\n"));
    assert_eq!(code, FailureCode::Invalid);
}

#[test]
fn a_lost_peer_is_removed_by_name_or_by_nickname() {
    let served = served(FakeAgent::new(sample()));
    let message = done(ask(&served, "{\"command\":\"rmpeer\",\"peer\":\"node3\"}\n"));
    assert_eq!(message, "349526 IPs taken over from node3");
    let message =
        done(ask(&served, "{\"command\":\"rmpeer\",\"peer\":\"7A:3F:00:00:00:03\",\"force\":true}\n"));
    assert_eq!(message, "349526 IPs taken over from 7A:3F:00:00:00:03");
    assert_eq!(
        served.agent.heard(),
        ["remove 7a:3f:00:00:00:03 false", "remove 7a:3f:00:00:00:03 true"].map(str::to_owned)
    );
}

#[test]
fn a_peer_that_lives_is_unknown_or_is_this_one_is_not_removed() {
    let served = served(FakeAgent::new(sample()));
    let remove =
        |peer: &str| failed(ask(&served, &format!("{{\"command\":\"rmpeer\",\"peer\":\"{peer}\"}}\n")));
    assert_eq!(remove("node2").0, FailureCode::Refused);
    assert_eq!(remove("node8").0, FailureCode::NotFound);
    assert_eq!(remove("7a:3f:00:00:00:08").0, FailureCode::NotFound);
    let (code, message) = remove("node1");
    assert_eq!(code, FailureCode::Refused);
    assert!(message.contains("weave reset"), "{message}");
}

#[test]
fn a_nickname_of_two_peers_is_refused_with_both_names() {
    let mut status = sample();
    status.router.peers[2].nickname = Nickname::lossy("node2");
    let error = resolve_peer(&status, "node2").unwrap_err().to_string();
    assert!(error.contains("7a:3f:00:00:00:02 and 7a:3f:00:00:00:03"), "{error}");
}

#[test]
fn a_peer_that_only_owns_addresses_can_be_named() {
    let mut status = sample();
    status.router.peers.clear();
    assert_eq!(resolve_peer(&status, "node3"), Ok(peer(3)));
    status.ipam.as_mut().unwrap().shares.clear();
    assert_eq!(resolve_peer(&status, &peer(1).to_string()), Ok(peer(1)));
}

#[test]
fn garbage_is_answered_with_what_is_wrong_and_the_socket_lives_on() {
    let served = served(FakeAgent::new(sample()));
    let garbage: [&[u8]; 7] = [
        b"hello\n",
        b"{}\n",
        b"{\"command\":\"reboot\"}\n",
        b"{\"command\":\"status\",\"x\":1}\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[[[[[[[[[[[[[[[[[[",
    ];
    for bytes in garbage {
        let answer = exchange(served.dir.path(), bytes);
        let (code, message) = failed(serde_json::from_str(&answer).unwrap());
        assert_eq!(code, FailureCode::Invalid, "{message}");
        assert!(message.starts_with("the request is not understood"), "{message}");
    }
    assert_eq!(exchange(served.dir.path(), b""), "");
    assert_eq!(exchange(served.dir.path(), b"\n"), "");
    assert!(matches!(ask(&served, "{\"command\":\"status\"}\n"), Answer::Status(_)));
}

#[test]
fn a_request_without_end_is_cut_off_with_an_answer() {
    let served = served(FakeAgent::new(sample()));
    let (code, message) = failed(ask(&served, &"x".repeat(MAX_REQUEST + 10)));
    assert_eq!(code, FailureCode::Invalid);
    assert!(message.contains("longer than 65536 bytes"), "{message}");
}

#[tokio::test]
async fn a_caller_who_says_nothing_is_told_so_and_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (mut socket, agent) = (ControlSocket::bind(dir.path()).unwrap(), FakeAgent::new(sample()));
    socket.patience.request = Duration::from_millis(20);
    let mut silent = tokio::net::UnixStream::connect(socket.path()).await.unwrap();
    let mut answer = String::new();
    tokio::select! {
        () = socket.serve(agent.feed(), agent.clone()) => unreachable!(),
        read = tokio::io::AsyncReadExt::read_to_string(&mut silent, &mut answer) => { read.unwrap(); }
    }
    let (code, message) = failed(serde_json::from_str(&answer).unwrap());
    assert_eq!(code, FailureCode::Invalid);
    assert!(message.contains("no whole request came"), "{message}");
}

#[tokio::test]
async fn a_brain_that_hangs_is_reported_and_does_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    let (mut socket, agent) = (ControlSocket::bind(dir.path()).unwrap(), FakeAgent::hanging(sample()));
    socket.patience.work = Duration::from_millis(50);
    let conversation = async |line: &str| {
        let mut stream = tokio::net::UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        serde_json::from_str::<Answer>(&answer).unwrap()
    };
    let both = async {
        tokio::join!(conversation("{\"command\":\"shutdown\"}\n"), conversation("{\"command\":\"status\"}\n"))
    };
    let (shutdown, status) = tokio::select! {
        () = socket.serve(agent.feed(), agent.clone()) => unreachable!(),
        both = both => both,
    };
    assert_eq!(failed(shutdown).0, FailureCode::TimedOut);
    assert!(matches!(status, Answer::Status(_)));
}

#[test]
fn only_root_can_open_the_socket() {
    let served = served(FakeAgent::new(sample()));
    let mode = std::fs::metadata(served.dir.path().join(SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_agent_is_told_of_the_first() {
    let served = served(FakeAgent::new(sample()));
    let _guard = served.runtime.enter();
    let error = ControlSocket::bind(served.dir.path()).unwrap_err();
    assert!(error.to_string().contains("another agent runs already"), "{error}");
    assert!(matches!(ask(&served, "{\"command\":\"status\"}\n"), Answer::Status(_)));
}

#[tokio::test]
async fn the_socket_of_a_dead_agent_is_taken_over_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deeper").join(SOCKET);
    let run_dir = path.parent().unwrap();
    std::fs::create_dir(run_dir).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = ControlSocket::bind(run_dir).unwrap();
    drop(socket);
    assert_eq!(std::fs::read_dir(run_dir).unwrap().count(), 0);
}

#[tokio::test]
async fn an_ending_agent_leaves_the_socket_of_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let first = ControlSocket::bind(dir.path()).unwrap();
    std::fs::remove_file(first.path()).unwrap();
    let second = ControlSocket::bind(dir.path()).unwrap();
    drop(first);
    assert!(second.path().exists());
}

#[tokio::test]
async fn a_run_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = ControlSocket::bind(&file).unwrap_err().to_string();
    assert!(error.contains("making its directory") && error.contains("file/weave.sock"), "{error}");
}

#[test]
fn a_status_of_an_agent_that_just_starts_can_be_asked_for() {
    let starting = Status::starting(peer(1), Nickname::lossy("a"), weave_proto::PeerUid(1));
    let served = served(FakeAgent::new(starting.clone()));
    assert_eq!(ask(&served, "{\"command\":\"status\"}\n"), Answer::Status(Box::new(starting)));
}
