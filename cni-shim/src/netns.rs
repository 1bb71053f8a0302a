//! The pod's network namespace, and a netlink socket inside it.
//!
//! A netlink socket belongs to the namespace in which it was opened, whoever uses it later. So this program, which
//! the runtime starts with all rights, opens one inside the pod and passes it on, and the agent configures the
//! pod without ever entering it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weave_proto::local::cni::{AttachmentKey, ErrorCode, Refusal};

/// A pod's network namespace, open.
#[derive(Debug)]
pub(crate) struct PodNetns {
    namespace: OwnedFd,
    netlink: OwnedFd,
}

/// Why a path is no pod's network namespace.
#[derive(Debug)]
pub(crate) enum NetnsError {
    /// There is no such file, or it is no longer a namespace.
    Gone(String),
    /// It is the namespace that we run in ourselves.
    Own(String),
    /// It could not be entered.
    Closed(String),
}

impl PodNetns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// It is gone, or our own, or cannot be entered.
    pub(crate) fn open(path: &str) -> Result<Self, NetnsError> {
        let gone =
            |error: &dyn std::fmt::Display| NetnsError::Gone(format!("network namespace {path:?}: {error}"));
        let closed =
            |error: std::io::Error| NetnsError::Closed(format!("network namespace {path:?}: {error}"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let namespace = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| gone(&error))?;
        let own = std::fs::metadata("/proc/self/ns/net").map_err(closed)?;
        let file = File::from(namespace);
        let this = file.metadata().map_err(closed)?;
        if this.dev() != own.dev() {
            // All namespaces live on one filesystem; what a removed bind mount leaves behind is a plain file.
            return Err(gone(&"not a network namespace"));
        }
        if this.ino() == own.ino() {
            return Err(NetnsError::Own(format!("network namespace {path:?} is the node's own")));
        }
        let namespace = OwnedFd::from(file);
        let netlink = open_netlink_inside(namespace.as_fd()).map_err(closed)?;
        Ok(Self { namespace, netlink })
    }

    /// What the agent is given, in the order it expects.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.namespace.as_fd(), self.netlink.as_fd()]
    }

    /// Removes the attachment's link, if this pod has it. The MAC address tells it from an interface of the same
    /// name that somebody else made.
    pub(crate) fn remove_link(&self, key: &AttachmentKey) -> std::io::Result<()> {
        let name = &key.interface;
        let Some(mac) = link_mac(&exchange(&self.netlink, &link_request(RTM_GETLINK, name))?) else {
            return Ok(());
        };
        if mac == key.pod_mac() {
            exchange(&self.netlink, &link_request(RTM_DELLINK, name))?;
        }
        Ok(())
    }
}

impl NetnsError {
    /// As an error of a verb that needs the namespace.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Gone(text) => Refusal::new(ErrorCode::UnknownContainer, text),
            Self::Own(text) | Self::Closed(text) => Refusal::new(ErrorCode::InvalidNetns, text),
        }
    }
}

/// A thread of its own enters the namespace, so that nothing of ours can be left inside it.
fn open_netlink_inside(namespace: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let inside = || -> std::io::Result<OwnedFd> {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        // NETLINK_ROUTE is protocol 0, which is what no protocol at all means.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(socket)
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread that entered it died")))
}

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
/// `struct nlmsghdr`, `struct ifinfomsg`.
const HEADERS: usize = 16 + 16;

/// A request about the link of this name (rtnetlink(7)): header, empty `ifinfomsg`, the name as attribute.
fn link_request(kind: u16, name: &str) -> Vec<u8> {
    let attribute = 4 + name.len() + 1;
    let length = HEADERS + attribute.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    let flags = if kind == RTM_GETLINK { NLM_F_REQUEST } else { NLM_F_REQUEST | NLM_F_ACK };
    message.extend_from_slice(&flags.to_ne_bytes());
    message.resize(HEADERS, 0);
    message.extend_from_slice(&u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(length, 0);
    message
}

/// Sends one request and gives back the answer, or an empty one if there is no such link.
fn exchange(socket: &OwnedFd, request: &[u8]) -> std::io::Result<Vec<u8>> {
    send(socket, request, SendFlags::empty())?;
    let mut answer = vec![0; 32 * 1024];
    let (got, _) = recv(socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(got);
    if word(&answer, 4).map(u16_of) == Some(NLMSG_ERROR) {
        let code = word(&answer, 16).map_or(0, i32::from_ne_bytes);
        let error = std::io::Error::from_raw_os_error(-code);
        return match (code, error.raw_os_error().and_then(no_such_link)) {
            (0, _) | (_, Some(())) => Ok(Vec::new()),
            _ => Err(error),
        };
    }
    Ok(answer)
}

fn no_such_link(code: i32) -> Option<()> {
    (code == rustix::io::Errno::NODEV.raw_os_error()).then_some(())
}

/// The MAC address in an answer about a link.
fn link_mac(answer: &[u8]) -> Option<[u8; 6]> {
    let mut at = HEADERS;
    while let Some(head) = word(answer, at) {
        let [low, high, ..] = head;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if length < 4 {
            return None;
        }
        if u16::from_ne_bytes([head[2], head[3]]) == IFLA_ADDRESS {
            return answer.get(at + 4..at + length)?.try_into().ok();
        }
        at += length.next_multiple_of(4);
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at + 4)?.try_into().ok()
}

const fn u16_of([low, high, ..]: [u8; 4]) -> u16 {
    u16::from_ne_bytes([low, high])
}
