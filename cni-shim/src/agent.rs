//! The conversation with the agent: connect, one line with descriptors, one line back, all before a deadline.
//!
//! An agent that is stopped or hung still has a listening socket, so each step can block: connecting when its
//! queue of connections is full, sending, waiting for the answer. The kernel's socket timeouts bound them all.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};
use rustix::time::{ClockId, clock_gettime};
use weave_proto::local::cni::{
    Answer, Call, ErrorCode, MAX_LINE, Moment, PROTOCOL, Refusal, Request, SOCKET,
};

/// ADD may wait for an address that another peer has to give (10 s), and for a kernel busy with other pods.
pub(crate) const ADD_PATIENCE: Duration = Duration::from_secs(60);

/// DEL has a way to go on without the agent, so it does not wait long.
pub(crate) const DEL_PATIENCE: Duration = Duration::from_secs(5);

/// CHECK and GC: as long as a healthy agent on a loaded node may need.
pub(crate) const CHECK_PATIENCE: Duration = Duration::from_secs(20);

/// STATUS is asked for twice a second by CRI-O; a slow answer is as good as none.
pub(crate) const STATUS_PATIENCE: Duration = Duration::from_millis(900);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    socket: PathBuf,
    reason: String,
}

impl Unanswered {
    /// As an error with this code.
    pub(crate) fn refusal(&self, code: ErrorCode) -> Refusal {
        let Self { socket, reason } = self;
        Refusal::new(code, format!("the weave agent does not answer at {}: {reason}", socket.display()))
            .with_details("is the agent running on this node? see its log, or `weave status`")
    }
}

/// Asks the agent that listens in `run_dir`.
///
/// # Errors
/// There is no agent, or no legible answer within `patience`.
pub(crate) fn ask(
    run_dir: &Path,
    call: Call,
    descriptors: &[BorrowedFd<'_>],
    patience: Duration,
) -> Result<Answer, Unanswered> {
    let socket = run_dir.join(SOCKET);
    converse(&socket, call, descriptors, patience).map_err(|reason| Unanswered { socket, reason })
}

/// Like [`ask`], with an agent's refusal and its silence (as `silence`) both an error.
pub(crate) fn ask_for(
    run_dir: &Path,
    call: Call,
    descriptors: &[BorrowedFd<'_>],
    (patience, silence): (Duration, ErrorCode),
) -> Result<Answer, Refusal> {
    match ask(run_dir, call, descriptors, patience) {
        Ok(Answer::Refused(refusal)) => Err(refusal),
        Ok(answer) => Ok(answer),
        Err(unanswered) => Err(unanswered.refusal(silence)),
    }
}

/// What the agent says where nothing but `Done` makes sense.
pub(crate) fn expect_done(answer: &Answer) -> Result<(), Refusal> {
    match answer {
        Answer::Done => Ok(()),
        other @ (Answer::Attached(_) | Answer::Allocated(_) | Answer::Refused(_)) => Err(unexpected(other)),
    }
}

/// An answer to another question: a bug, ours or the agent's.
pub(crate) fn unexpected(answer: &Answer) -> Refusal {
    Refusal::new(ErrorCode::Internal, format!("the weave agent gave an answer of the wrong kind: {answer:?}"))
}

fn converse(
    socket: &Path,
    call: Call,
    descriptors: &[BorrowedFd<'_>],
    patience: Duration,
) -> Result<Answer, String> {
    let deadline = Deadline(Instant::now() + patience);
    let mut stream = dial(socket, deadline)?;
    let mut line = serde_json::to_vec(&Request { protocol: PROTOCOL, call })
        .map_err(|error| format!("cannot write the request: {error}"))?;
    line.push(b'\n');
    send(&mut stream, &line, descriptors, deadline)?;
    let answer = receive(&mut stream, deadline)?;
    serde_json::from_slice(&answer).map_err(|error| format!("illegible answer: {error}"))
}

fn dial(socket: &Path, deadline: Deadline) -> Result<UnixStream, String> {
    let text = |error: rustix::io::Errno| match error {
        rustix::io::Errno::AGAIN => "timed out: its queue of connections is full".to_owned(),
        other => other.to_string(),
    };
    let address = SocketAddrUnix::new(socket).map_err(text)?;
    let fd =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(text)?;
    set_socket_timeout(&fd, Timeout::Send, Some(deadline.left()?)).map_err(text)?;
    connect(&fd, &address).map_err(text)?;
    Ok(fd.into())
}

fn send(
    stream: &mut UnixStream,
    line: &[u8],
    descriptors: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> Result<(), String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(format!("cannot pass {} descriptors", descriptors.len()));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|error| format!("cannot send the request: {error}"))?;
    // Descriptors travel with the first byte; the rest of a long line follows plainly.
    stream.set_write_timeout(Some(deadline.left()?)).map_err(|error| error.to_string())?;
    stream.write_all(&line[sent..]).map_err(|error| format!("cannot send the request: {error}"))
}

fn receive(stream: &mut UnixStream, deadline: Deadline) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(deadline.left()?)).map_err(|error| error.to_string())?;
        let got = match stream.read(&mut buffer) {
            Ok(0) => return Err("it closed the connection without an answer".to_owned()),
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("timed out".to_owned());
            }
            Err(error) => return Err(format!("cannot read the answer: {error}")),
        };
        answer.extend_from_slice(&buffer[..got]);
        if answer.ends_with(b"\n") {
            return Ok(answer);
        }
        if answer.len() > MAX_LINE {
            return Err(format!("its answer is longer than {MAX_LINE} bytes"));
        }
    }
}

#[derive(Clone, Copy)]
struct Deadline(Instant);

impl Deadline {
    fn left(self) -> Result<Duration, String> {
        let left = self.0.saturating_duration_since(Instant::now());
        // The kernel takes a timeout of zero for none at all.
        if left < Duration::from_millis(1) { Err("timed out".to_owned()) } else { Ok(left) }
    }
}

/// This moment, comparable within this boot.
pub(crate) fn now() -> Moment {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let time = clock_gettime(ClockId::Boottime);
    let nanoseconds =
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
    Moment { boot: boot.trim().to_owned(), nanoseconds }
}
