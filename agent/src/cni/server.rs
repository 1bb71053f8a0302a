//! The socket that the shim talks to.
//!
//! One connection, one request, one answer. A request that makes no sense is answered with an error that says why;
//! one that does not come to an end is given up. The answer to an ADD matters more than others: if nobody takes
//! it, the runtime saw the ADD fail, and it is undone.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weave_proto::local::cni::{Answer, Call, ErrorCode, MAX_LINE, PROTOCOL, Refusal, Request, SOCKET};

use super::pod::PodNetns;
use super::{Addresses, Cni, Ports};

/// How long a request may take to arrive. The shim sends it in one piece.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// How long an answer may take to be taken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// How long requests that are being worked on are waited for when the agent stops.
const FAREWELL: Duration = Duration::from_secs(10);

/// How many requests are worked on at once; more wait in the kernel's queue.
const MAX_REQUESTS: usize = 512;

/// The descriptors of a request: the namespace and the netlink socket.
const DESCRIPTORS: usize = 2;

/// The listening socket.
#[derive(Debug)]
pub struct Server<A, P> {
    cni: Arc<Cni<A, P>>,
    listener: UnixListener,
}

/// Whoever sent a request, as far as it matters while it is worked on: whether they still wait.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a>(Option<&'a UnixStream>);

impl Asker<'_> {
    /// One who waits for ever: for requests that do not come over the socket.
    #[must_use]
    pub const fn patient() -> Self {
        Self(None)
    }

    /// Fails when the asker has gone: then the runtime counts the request as failed, or the shim has found
    /// another way.
    ///
    /// # Errors
    /// Code 11.
    pub fn must_wait_still(&self) -> Result<(), Refusal> {
        let Some(stream) = self.0 else { return Ok(()) };
        let mut byte = [0_u8; 1];
        match recv(stream.as_fd(), byte.as_mut_slice(), RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN) => Ok(()),
            // It says nothing more, so that anything to read is the end.
            Ok(_) | Err(_) => Err(Refusal::new(ErrorCode::TryAgain, "nobody waits for the answer any more")),
        }
    }
}

impl<A: Addresses, P: Ports> Server<A, P> {
    /// Opens the socket, for root alone. Requests wait in the kernel's queue until [`Self::run`] takes them.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(cni: Arc<Cni<A, P>>) -> io::Result<Self> {
        let listener = listen(&cni.paths.run_dir)?;
        Ok(Self { cni, listener })
    }

    /// Settles what is left from before, then serves until `stop` is done, then finishes what is under way.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        self.cni.carry_out_tombstones().await;
        self.cni.sweep().await;
        let mut requests = JoinSet::new();
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(finished) = requests.join_next() => note_death(finished),
                accepted = accept(&self.listener, &room) => match accepted {
                    Ok((stream, place)) => {
                        let cni = Arc::clone(&self.cni);
                        requests.spawn(async move {
                            serve(&cni, stream).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection of the CNI shim");
                        // Out of descriptors, most likely: let some requests finish.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(self.listener);
        let finishing = async {
            while let Some(finished) = requests.join_next().await {
                note_death(finished);
            }
        };
        if timeout(FAREWELL, finishing).await.is_err() {
            tracing::warn!("stopping although CNI requests are still being worked on");
        }
    }
}

fn note_death(finished: Result<(), tokio::task::JoinError>) {
    if let Err(error) = finished {
        tracing::error!(%error, "a CNI request died");
    }
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// Binds beside the socket's place, narrows the mode, and renames: there is no moment with a wider mode, and none
/// without a socket when an agent follows another.
fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir)?;
    let beside = run_dir.join(format!(".{SOCKET}.new"));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, run_dir.join(SOCKET))?;
    Ok(listener)
}

async fn serve<A: Addresses, P: Ports>(cni: &Cni<A, P>, mut stream: UnixStream) {
    let received = timeout(REQUEST_PATIENCE, receive(&stream)).await;
    let received = received.unwrap_or_else(|_| Err(garbage("the request did not come to an end")));
    let (request, descriptors) =
        match received.and_then(|(line, descriptors)| Ok((parse(&line)?, descriptors))) {
            Ok(request) => request,
            Err(refusal) => {
                tracing::debug!(failure = %refusal, "a bad request on the CNI socket");
                let _nobody_to_tell = answer(&mut stream, &Answer::Refused(refusal)).await;
                return;
            }
        };
    let outcome = perform(cni, &request.call, descriptors, &Asker(Some(&stream))).await;
    let told = answer(&mut stream, &outcome.unwrap_or_else(Answer::Refused)).await;
    if let (Ok(Answer::Attached(_)), Call::Add(add)) = (&told, &request.call) {
        tracing::info!(container = %add.key, pod = add.pod.as_deref(), "attached a pod");
    }
    if let (Err(Answer::Attached(_)), Call::Add(add)) = (&told, &request.call) {
        cni.take_back(add).await;
    }
}

async fn perform<A: Addresses, P: Ports>(
    cni: &Cni<A, P>,
    call: &Call,
    descriptors: Vec<OwnedFd>,
    asker: &Asker<'_>,
) -> Result<Answer, Refusal> {
    let done = |()| Answer::Done;
    match call {
        Call::Add(add) => {
            let pod = pod(descriptors)?.ok_or_else(|| garbage("ADD without the pod's descriptors"))?;
            // Before its own lock, since others' attachments are locked for it.
            cni.carry_out_tombstones().await;
            cni.add(add, pod, asker).await.map(Answer::Attached)
        }
        // A DEL that was passed something unusable still has the record to work from.
        Call::Del(del) => cni.del(del, pod(descriptors).ok().flatten(), asker).await.map(done),
        Call::Check(check) => {
            let pod = pod(descriptors)?.ok_or_else(|| garbage("CHECK without the pod's descriptors"))?;
            cni.check(check, pod).await.map(done)
        }
        Call::Gc(gc) => cni.gc(gc).await.map(done),
        Call::Status => cni.status().map(done),
        Call::Allocate(allocate) => cni.allocate(allocate, asker).await.map(Answer::Allocated),
        Call::Release(release) => cni.release(release, asker).await.map(done),
        Call::Verify(verify) => cni.verify(verify).await.map(done),
        Call::Prune(gc) => cni.prune(gc).await.map(done),
    }
}

/// The pod's side, if it was passed. The node's own namespace is nobody's pod.
fn pod(descriptors: Vec<OwnedFd>) -> Result<Option<PodNetns>, Refusal> {
    let Ok([namespace, netlink]) = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) else { return Ok(None) };
    let invalid = |msg: String| Refusal::new(ErrorCode::InvalidNetns, msg);
    let passed =
        rustix::fs::fstat(&namespace).map_err(|error| invalid(format!("the namespace passed: {error}")))?;
    let own = rustix::fs::stat("/proc/thread-self/ns/net")
        .map_err(|error| invalid(format!("the node's own namespace: {error}")))?;
    if passed.st_dev != own.st_dev {
        return Err(invalid("what was passed is no network namespace".to_owned()));
    }
    if passed.st_ino == own.st_ino {
        return Err(invalid("the network namespace passed is the node's own".to_owned()));
    }
    PodNetns::new(namespace, netlink).map(Some).map_err(|error| invalid(error.to_string()))
}

fn parse(line: &[u8]) -> Result<Request, Refusal> {
    // The version first: a newer shim may say things that we cannot read.
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }
    let illegible = |error: serde_json::Error| garbage(&format!("illegible request: {error}"));
    let Version { protocol } = serde_json::from_slice(line).map_err(illegible)?;
    if protocol != PROTOCOL {
        let msg = format!("the shim speaks version {protocol} of the agent's protocol, the agent {PROTOCOL}");
        let remedy = "install the shim that belongs to the running agent: `weave setup-cni`";
        return Err(Refusal::new(ErrorCode::TryAgain, msg).with_details(remedy));
    }
    serde_json::from_slice(line).map_err(illegible)
}

/// One line and the descriptors beside it.
async fn receive(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>), Refusal> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    loop {
        let ready = stream.readable().await.and_then(|()| {
            stream.try_io(Interest::READABLE, || receive_some(stream, &mut line, &mut descriptors))
        });
        match ready {
            Ok(0) => return Err(garbage("the request ends without a line's end")),
            Ok(_) if line.len() > MAX_LINE => return Err(garbage("the request is too long")),
            Ok(_) if descriptors.len() > DESCRIPTORS => {
                return Err(garbage("too many descriptors were passed"));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(garbage(&format!("cannot read the request: {error}"))),
        }
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            if end + 1 != line.len() {
                return Err(garbage("there is something behind the request"));
            }
            return Ok((line, descriptors));
        }
    }
}

fn receive_some(
    stream: &UnixStream,
    line: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    line.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}

/// Gives the answer; gives it back if nobody took it.
async fn answer(stream: &mut UnixStream, answer: &Answer) -> Result<Answer, Answer> {
    let Ok(mut line) = serde_json::to_vec(answer) else { return Err(answer.clone()) };
    line.push(b'\n');
    // What was made is given to nobody but who waits for it; others may hear why not while they still talk.
    let made = matches!(answer, Answer::Attached(_) | Answer::Allocated(_));
    if made && Asker(Some(stream)).must_wait_still().is_err() {
        return Err(answer.clone());
    }
    match timeout(ANSWER_PATIENCE, stream.write_all(&line)).await {
        Ok(Ok(())) => Ok(answer.clone()),
        Ok(Err(_)) | Err(_) => Err(answer.clone()),
    }
}

fn garbage(msg: &str) -> Refusal {
    Refusal::new(ErrorCode::Decode, msg)
}
