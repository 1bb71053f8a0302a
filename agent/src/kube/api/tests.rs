//! Against a server in this process that behaves as API servers do on a bad day. That they behave well, the tests in
//! tests/k8s show.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::kube::follow::{View, follow};
use crate::kube::objects::Node;
use crate::task::{self, Task};

const EMPTY: &str = r#"{"metadata":{"resourceVersion":"10"},"items":[]}"#;
const ONE: &str = r#"{"metadata":{"resourceVersion":"20"},"items":[{"metadata":{"name":"a"}}]}"#;

/// What the server does with one request.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Answers with this status and body.
    Answer(u16, &'static str),
    /// Ends the connection without a word.
    HangUp,
}

/// A server that does these things, one a request, and the last one over and over.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
    _task: Task,
}

impl Server {
    async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&asked);
        let task = task::spawn("a server on a bad day", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, &acts, &log).await;
            }
        });
        Self { address, asked, _task: task }
    }

    fn api(&self, account: &Path) -> Api {
        std::fs::write(account.join("token"), "token").unwrap();
        let mut config = Config::new(format!("http://{}", self.address).parse().unwrap());
        config.auth_info.token_file = Some(account.join("token").display().to_string());
        config.default_retry = false;
        Api { client: Client::try_from(config).unwrap() }
    }

    fn asked(&self) -> Vec<(Instant, String)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The kinds of the requests so far: `L` for a list, `W` for a watch.
    fn course(&self) -> String {
        self.asked().iter().map(|(_, line)| if line.contains("watch=true") { 'W' } else { 'L' }).collect()
    }

    async fn has_been_asked(&self, times: usize) {
        let asked = async {
            while self.asked().len() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), asked).await.unwrap();
    }
}

/// One request a connection.
async fn serve(mut stream: TcpStream, acts: &[Act], log: &Mutex<Vec<(Instant, String)>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let number = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push((Instant::now(), line));
        log.len() - 1
    };
    if let Some(Act::Answer(code, body)) = acts.get(number).or_else(|| acts.last()) {
        let head = format!(
            "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    }
}

/// Follows the Nodes of such a server.
fn followed(api: Api) -> (watch::Receiver<View<Node>>, Task) {
    let (view, reader) = watch::channel(View::default());
    (reader, task::spawn("a follower", follow(api, Place::nodes(), None, view)))
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_anew_and_nothing_is_lost_meanwhile() {
    let gone =
        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
    let server = Server::start(vec![
        Act::Answer(200, ONE),
        Act::Answer(200, gone),
        Act::Answer(200, ONE),
        Act::HangUp,
    ])
    .await;
    let account = tempfile::tempdir().unwrap();
    let (mut view, _task) = followed(server.api(account.path()));
    view.wait_for(|view| view.objects.is_some()).await.unwrap();
    server.has_been_asked(3).await;
    assert!(server.course().starts_with("LWL"), "{}", server.course());
    assert!(view.borrow().objects.as_ref().unwrap().contains_key("a"));
}

#[tokio::test]
async fn a_server_with_too_much_to_do_is_left_alone_for_as_long_as_it_asks() {
    let busy = r#"{"kind":"Status","status":"Failure","code":429,"reason":"TooManyRequests","message":"slow down","details":{"retryAfterSeconds":2}}"#;
    let server = Server::start(vec![Act::Answer(429, busy), Act::Answer(200, EMPTY), Act::HangUp]).await;
    let account = tempfile::tempdir().unwrap();
    let (mut view, _task) = followed(server.api(account.path()));
    view.wait_for(|view| view.trouble.is_some()).await.unwrap();
    assert_eq!(view.borrow().trouble.as_ref().unwrap().kind, Kind::Busy(Some(Duration::from_secs(2))));
    view.wait_for(|view| view.objects.is_some()).await.unwrap();
    let asked = server.asked();
    assert!(asked[1].0 - asked[0].0 >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_server_that_hangs_up_is_asked_with_pauses_and_the_error_says_what_was_wanted() {
    let server = Server::start(vec![Act::HangUp]).await;
    let account = tempfile::tempdir().unwrap();
    let (mut view, _task) = followed(server.api(account.path()));
    view.wait_for(|view| view.trouble.is_some()).await.unwrap();
    let trouble = view.borrow().trouble.clone().unwrap();
    assert_eq!(trouble.kind, Kind::Unreachable);
    let text = trouble.to_string();
    assert!(text.contains("list the Nodes") && text.contains("KUBERNETES_SERVICE_HOST"), "{text}");
    server.has_been_asked(3).await;
    let asked = server.asked();
    assert!(asked[2].0 - asked[0].0 >= crate::kube::backoff::FIRST, "{asked:?}");
}

#[tokio::test]
async fn whoever_may_not_is_told_the_remedy() {
    let forbidden = r#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"nodes is forbidden"}"#;
    let server = Server::start(vec![Act::Answer(403, forbidden)]).await;
    let account = tempfile::tempdir().unwrap();
    let error =
        server.api(account.path()).page::<Node>(&Place::nodes(), None, None).await.unwrap_err().to_string();
    assert!(error.contains("nodes is forbidden") && error.contains("ClusterRole"), "{error}");
}
