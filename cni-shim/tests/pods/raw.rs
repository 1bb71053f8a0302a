//! The socket without the shim.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socket_with,
};
use serde_json::Value;

use crate::support::lab::Netns;

pub(super) fn pod_descriptors(pod: &Netns) -> Vec<OwnedFd> {
    let netns = OwnedFd::from(std::fs::File::open(pod.path()).unwrap());
    let socket = pod
        .inside(|| socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap());
    vec![netns, socket]
}

pub(super) fn send(mut stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    // The agent may hang up on something endless.
    let _hung_up = stream.write_all(&bytes[sent..]);
}

pub(super) fn read(mut stream: &UnixStream) -> Value {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"\n") {
        let got = stream.read(&mut buffer).unwrap();
        assert_ne!(got, 0, "no answer");
        answer.extend_from_slice(&buffer[..got]);
    }
    serde_json::from_slice(&answer).unwrap()
}

pub(super) fn ask(socket: &Path, bytes: &[u8], descriptors: &[OwnedFd]) -> Value {
    let stream = UnixStream::connect(socket).unwrap();
    send(&stream, bytes, descriptors);
    read(&stream)
}
