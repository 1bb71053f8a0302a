//! An agent that says what it is told to, and remembers what it was asked.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use weave_proto::local::cni::{Answer, Request};

/// What the agent was asked, and with which descriptors.
pub struct Asked {
    pub request: Request,
    pub descriptors: Vec<OwnedFd>,
}

/// The agent; it ends with the test's process.
pub struct FakeAgent {
    pub asked: Receiver<Asked>,
}

impl FakeAgent {
    /// Answers every request with `answer`.
    pub fn answering(run_dir: &Path, answer: Answer) -> Self {
        let mut line = serde_json::to_vec(&answer).unwrap();
        line.push(b'\n');
        Self::saying(run_dir, line)
    }

    /// Answers every request with these bytes.
    pub fn saying(run_dir: &Path, bytes: Vec<u8>) -> Self {
        let listener = UnixListener::bind(run_dir.join("cni.sock")).unwrap();
        let (told, asked) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = receive(&stream);
                let _reader_gone = stream.write_all(&bytes);
                if told.send(request).is_err() {
                    return;
                }
            }
        });
        Self { asked }
    }

    /// Accepts and never answers.
    pub fn hung(run_dir: &Path) -> Hung {
        Hung { _listener: UnixListener::bind(run_dir.join("cni.sock")).unwrap(), _filling: Vec::new() }
    }

    /// Not even accepts: its queue of connections is full.
    pub fn hung_with_a_full_queue(run_dir: &Path) -> Hung {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let mut hung = Self::hung(run_dir);
        let address = SocketAddrUnix::new(run_dir.join("cni.sock")).unwrap();
        rustix::net::listen(&hung._listener, 0).unwrap();
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&socket, &address) {
                Ok(()) => hung._filling.push(socket),
                Err(rustix::io::Errno::AGAIN) => return hung,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next request.
    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(std::time::Duration::from_secs(10)).unwrap()
    }
}

/// A listening socket that nobody serves.
pub struct Hung {
    _listener: UnixListener,
    _filling: Vec<OwnedFd>,
}

fn receive(stream: &UnixStream) -> Asked {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    while !line.ends_with(b"\n") {
        let mut buffer = [0; 65536];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        assert_ne!(got, 0, "the shim hung up within its request");
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        line.extend_from_slice(&buffer[..got]);
    }
    Asked { request: serde_json::from_slice(&line).unwrap(), descriptors }
}
