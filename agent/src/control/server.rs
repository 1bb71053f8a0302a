//! The socket and the conversations on it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use weave_proto::PeerName;
use weave_proto::local::control::{Answer, Done, Failure, FailureCode, MAX_REQUEST, Request, SOCKET};
use weave_proto::local::status::Status;

use super::{Control, resolve_peer};
use crate::config::Target;

/// How long the server waits, and for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a caller to say what it wants. The command line sends its line at once.
    pub(super) request: Duration,
    /// For the brain. Removing a peer waits for the other peers' word; everything else is local.
    pub(super) work: Duration,
    /// For a caller to read the answer.
    pub(super) answer: Duration,
}

impl Patience {
    /// What serves people; the command line waits a little longer than `work`.
    const USUAL: Self = Self {
        request: Duration::from_secs(5),
        work: Duration::from_secs(30),
        answer: Duration::from_secs(10),
    };
}

/// Conversations at a time; further callers wait in the socket's queue.
const MAX_CONVERSATIONS: usize = 32;

/// After a failed accept, such as for want of file descriptors, how long to wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The socket for operators, listening. Its name vanishes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    pub(super) patience: Patience,
}

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent listens there.
    #[error(
        "another agent runs already: it answers at {0}. Stop it first, or give this one its own --run-dir and \
         --data-dir"
    )]
    InUse(PathBuf),
    /// A file operation failed.
    #[error("cannot make the control socket {path}: {action}: {source}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl ControlSocket {
    /// Makes the socket in `run_dir`, which is made too. The name of an agent that has died is taken over.
    ///
    /// # Errors
    /// Another agent listens there, or the files cannot be made.
    pub fn bind(run_dir: &Path) -> Result<Self, BindError> {
        let path = run_dir.join(SOCKET);
        let failed = |action| {
            let path = path.clone();
            move |source| BindError::Io { path, action, source }
        };
        fs::create_dir_all(run_dir).map_err(failed("making its directory"))?;
        if StdStream::connect(&path).is_ok() {
            return Err(BindError::InUse(path));
        }
        // Bound under another name and renamed once it is private: there is no moment in which others could
        // open it, and no moment in which the name is missing.
        let private = run_dir.join(format!(".{SOCKET}.{}", std::process::id()));
        let _ = fs::remove_file(&private);
        let listener = StdListener::bind(&private).map_err(failed("binding"))?;
        let listener = publish(listener, &private, &path).inspect_err(|_| {
            let _ = fs::remove_file(&private);
        });
        let (listener, inode) = listener.map_err(failed("making it private"))?;
        Ok(Self { listener, path, inode, patience: Patience::USUAL })
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers callers until it is dropped.
    pub async fn serve<C: Control>(&self, status: watch::Receiver<Arc<Status>>, control: C) {
        let mut conversations = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if conversations.len() < MAX_CONVERSATIONS => match accepted {
                    Ok((stream, _)) => conversations.push(converse(stream, self.patience, &status, &control)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a caller on the control socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(()) = conversations.next() => {}
            }
        }
    }
}

fn publish(listener: StdListener, private: &Path, path: &Path) -> io::Result<(UnixListener, u64)> {
    fs::set_permissions(private, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let inode = fs::metadata(private)?.ino();
    let listener = UnixListener::from_std(listener)?;
    fs::rename(private, path)?;
    Ok((listener, inode))
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Not if a later agent has taken the name.
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One request, one answer.
async fn converse<C: Control>(
    mut stream: UnixStream,
    patience: Patience,
    status: &watch::Receiver<Arc<Status>>,
    control: &C,
) {
    let answer = match hear(&mut stream, patience.request).await {
        Ok(Some(request)) => timeout(patience.work, answer(request, status, control))
            .await
            .unwrap_or_else(|_| overdue(patience.work)),
        Ok(None) => return,
        Err(failure) => Answer::Failed(failure),
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        br#"{"failed":{"code":"internal","message":"the agent cannot write its answer: see its log"}}"#
            .to_vec()
    });
    line.push(b'\n');
    let said = async {
        stream.write_all(&line).await?;
        part(&mut stream).await
    };
    match timeout(patience.answer, said).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "a caller on the control socket did not wait for its answer")
        }
        Err(_) => tracing::debug!("a caller on the control socket does not read its answer"),
    }
}

/// The caller's request; none if it hung up without a word.
async fn hear(stream: &mut UnixStream, patience: Duration) -> Result<Option<Request>, Failure> {
    let invalid = |message: String| Failure::new(FailureCode::Invalid, message);
    if !is_trusted(stream) {
        return Err(Failure::new(FailureCode::Denied, "only root may ask the agent for something"));
    }
    let line = match timeout(patience, read_line(stream)).await {
        Ok(Ok(Some(line))) if line.is_empty() => return Ok(None),
        Ok(Ok(Some(line))) => line,
        Ok(Ok(None)) => {
            return Err(invalid(format!("the request is longer than {MAX_REQUEST} bytes: split it")));
        }
        Ok(Err(error)) => return Err(invalid(format!("the request cannot be read: {error}"))),
        Err(_) => {
            return Err(invalid(format!(
                "no whole request came within {patience:?}: end it with a line end"
            )));
        }
    };
    match serde_json::from_slice(&line) {
        Ok(request) => Ok(Some(request)),
        Err(error) => Err(invalid(format!("the request is not understood: {error}"))),
    }
}

/// Closes after what the caller is still saying: a socket that is closed with unread bytes throws the answer
/// away. A caller that never stops is not listened to for ever.
async fn part(stream: &mut UnixStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut ignored = [0; 4096];
    for _ in 0..MAX_REQUEST {
        if stream.read(&mut ignored).await? == 0 {
            break;
        }
    }
    Ok(())
}

fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|caller| caller.uid() == 0 || caller.uid() == own)
}

/// Bytes up to the first line end or the end of what comes; none if there are too many.
async fn read_line(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).await?;
        let new = chunk.get(..count).unwrap_or_default();
        let end = new.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(new.get(..end.unwrap_or(count)).unwrap_or_default());
        if line.len() >= MAX_REQUEST {
            return Ok(None);
        }
        if end.is_some() || count == 0 {
            return Ok(Some(line));
        }
    }
}

async fn answer<C: Control>(request: Request, status: &watch::Receiver<Arc<Status>>, control: &C) -> Answer {
    let seen = Arc::clone(&status.borrow());
    let work = async {
        match request {
            Request::Status {} => return Ok(Answer::Status(Box::new(Status::clone(&seen)))),
            Request::Connect { peers, replace } => connect(control, &peers, replace).await,
            Request::Forget { peers } => forget(control, &peers, &seen).await,
            Request::RmPeer { peer, force } => remove(control, &peer, force, &seen).await,
            Request::Shutdown {} => control.shutdown().await.map(|()| "the agent ends".to_owned()),
        }
        .map(|message| Answer::Done(Done { message }))
    };
    work.await.unwrap_or_else(Answer::Failed)
}

fn overdue(patience: Duration) -> Answer {
    let message = format!("the agent did not finish within {patience:?}; it goes on: see `weave status`");
    Answer::Failed(Failure::new(FailureCode::TimedOut, message))
}

async fn connect<C: Control>(control: &C, peers: &[String], replace: bool) -> Result<String, Failure> {
    let targets = parse_targets(peers)?;
    if targets.is_empty() && !replace {
        return Err(Failure::new(FailureCode::Invalid, "no peer was named: say where to look, host[:port]"));
    }
    let named = listed(&targets);
    control.connect(targets, replace).await?;
    Ok(match (replace, named.as_str()) {
        (true, "") => "looking for no peer any more; connections that exist stay".to_owned(),
        (true, named) => format!("looking for {named} only"),
        (false, named) => format!("looking for {named}"),
    })
}

async fn forget<C: Control>(control: &C, peers: &[String], seen: &Status) -> Result<String, Failure> {
    let targets = parse_targets(peers)?;
    if targets.is_empty() {
        return Err(Failure::new(FailureCode::Invalid, "no peer was named: say which target to forget"));
    }
    let known: Vec<Target> = seen.router.targets.iter().filter_map(|it| it.target.parse().ok()).collect();
    let unknown: Vec<_> = targets.iter().filter(|target| !known.contains(target)).cloned().collect();
    let known: Vec<_> = targets.iter().filter(|target| known.contains(target)).cloned().collect();
    control.forget(targets).await?;
    Ok(match (known.as_slice(), unknown.as_slice()) {
        (known, []) => format!("looking for {} no longer", listed(known)),
        ([], unknown) => format!("{}: no such target; `weave status targets` lists them", listed(unknown)),
        (known, unknown) => {
            format!("looking for {} no longer ({}: no such target)", listed(known), listed(unknown))
        }
    })
}

async fn remove<C: Control>(control: &C, peer: &str, force: bool, seen: &Status) -> Result<String, Failure> {
    let name: PeerName = resolve_peer(seen, peer)?;
    if name == seen.name {
        return Err(Failure::new(
            FailureCode::Refused,
            format!(
                "{name} is this peer itself: run `weave reset` here, then `weave rmpeer` on another node"
            ),
        ));
    }
    let addresses = control.remove_peer(name, force).await?;
    Ok(format!("{addresses} IPs taken over from {peer}"))
}

fn parse_targets(peers: &[String]) -> Result<Vec<Target>, Failure> {
    let read = |text: &String| text.parse::<Target>();
    let targets: Result<_, _> = peers.iter().map(read).collect();
    targets.map_err(|error| Failure::new(FailureCode::Invalid, error.to_string()))
}

fn listed(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
