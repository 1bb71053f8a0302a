//! A route netlink socket: steps sent together, links looked up, tables dumped.
//!
//! The kernel carries out a request while it is being sent, and one send may hold many requests. So the whole of a
//! pod's configuration costs one `send` and one `recv`: only the last step asks for an acknowledgement, and an
//! earlier one is heard of only if it failed. All calls here block, for as long as the kernel's one lock for
//! network configuration is busy: they belong on a thread for blocking work.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel says many things that do not matter here, and more each year"
)]

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_domain, socket_protocol, socket_type};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// How long to wait for an answer that the kernel gives at once: only so that a bug cannot hang a thread.
const PATIENCE: Duration = Duration::from_secs(30);

/// Larger than any one datagram of a dump (the kernel makes them of 32 KiB at most).
const BUFFER: usize = 64 * 1024;

/// A route netlink socket of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    /// The next request's number. Held for a whole question and answer, so that two threads never read each
    /// other's answers.
    sequence: Mutex<u32>,
}

/// One change, and what it does for people.
#[derive(Debug)]
pub struct Step {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

/// A change that the kernel refused, or a conversation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    what: String,
    errno: Option<Errno>,
    why: String,
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        self.errno
    }

    fn new(what: &str, errno: Errno) -> Self {
        Self { what: what.to_owned(), errno: Some(errno), why: std::io::Error::from(errno).to_string() }
    }

    fn illegible(what: &str, why: &dyn fmt::Display) -> Self {
        Self { what: what.to_owned(), errno: None, why: format!("illegible answer of the kernel: {why}") }
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for NetlinkError {}

impl Step {
    /// Makes something new; it is an error if it exists.
    #[must_use]
    pub fn create(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), message, flags: NLM_F_CREATE | NLM_F_EXCL }
    }

    /// Changes or removes something that exists.
    #[must_use]
    pub fn change(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), message, flags: 0 }
    }
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let opening = |errno| NetlinkError::new("opening a netlink socket", errno);
        // NETLINK_ROUTE is protocol 0, which is what no protocol at all means.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(opening)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(opening)?;
        Self::with_timeout(socket)
    }

    /// A socket that somebody else opened, in the namespace where that happened.
    ///
    /// # Errors
    /// It is no route netlink socket.
    pub fn from_fd(socket: OwnedFd) -> Result<Self, NetlinkError> {
        let looking = |errno| NetlinkError::new("looking at the socket passed", errno);
        let domain = socket_domain(&socket).map_err(looking)?;
        let protocol = socket_protocol(&socket).map_err(looking)?;
        let kind = socket_type(&socket).map_err(looking)?;
        if domain != AddressFamily::NETLINK || protocol.is_some() || kind != SocketType::RAW {
            return Err(NetlinkError {
                what: "looking at the socket passed".to_owned(),
                errno: None,
                why: "it is no route netlink socket".to_owned(),
            });
        }
        Self::with_timeout(socket)
    }

    fn with_timeout(socket: OwnedFd) -> Result<Self, NetlinkError> {
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))
            .map_err(|errno| NetlinkError::new("setting a netlink socket's timeout", errno))?;
        Ok(Self { socket, sequence: Mutex::new(1) })
    }

    /// Takes all steps in order. The kernel goes on after a step that fails, so after an error it is unknown
    /// which later steps were taken: the caller removes what they belong to.
    ///
    /// # Errors
    /// The first step that was refused.
    pub fn apply(&self, steps: Vec<Step>) -> Result<(), NetlinkError> {
        let Some(last) = steps.len().checked_sub(1) else { return Ok(()) };
        let mut turn = self.turn();
        let first_sequence = *turn;
        let mut batch = Vec::with_capacity(1024);
        let mut names = Vec::with_capacity(steps.len());
        for (position, step) in steps.into_iter().enumerate() {
            let ack = if position == last { NLM_F_ACK } else { 0 };
            append(&mut batch, &mut turn, step.message, step.flags | ack);
            names.push(step.what);
        }
        let all = names.last().cloned().unwrap_or_default();
        send(&self.socket, &batch, SendFlags::empty()).map_err(|errno| NetlinkError::new(&all, errno))?;
        let mut first_error = None;
        self.answers(&all, first_sequence, |sequence, payload| {
            let position = (sequence - first_sequence) as usize;
            if let NetlinkPayload::Error(error) = payload
                && let Some(code) = error.code
            {
                let what = names.get(position).unwrap_or(&all);
                let errno = Errno::from_raw_os_error(-code.get());
                first_error.get_or_insert_with(|| NetlinkError::new(what, errno));
            }
            position < last
        })?;
        first_error.map_or(Ok(()), Err)
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let what = format!("looking up link {name}");
        let mut turn = self.turn();
        let sequence = self.request(&what, &mut turn, RouteNetlinkMessage::GetLink(request), 0)?;
        let (mut found, mut failed) = (None, None);
        self.answers(&what, sequence, |_, payload| {
            match payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => found = Some(link),
                NetlinkPayload::Error(error) => {
                    failed = error.code.map(|code| Errno::from_raw_os_error(-code.get()));
                }
                _ => {}
            }
            false
        })?;
        match failed {
            Some(Errno::NODEV) | None => Ok(found),
            Some(errno) => Err(NetlinkError::new(&what, errno)),
        }
    }

    /// Everything that `request` (one of the GET messages) is about.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn dump(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut turn = self.turn();
        let sequence = self.request(what, &mut turn, request, NLM_F_DUMP)?;
        let (mut found, mut failed) = (Vec::new(), None);
        self.answers(what, sequence, |_, payload| match payload {
            NetlinkPayload::InnerMessage(message) => {
                found.push(message);
                true
            }
            NetlinkPayload::Error(error) => {
                failed = error.code.map(|code| Errno::from_raw_os_error(-code.get()));
                false
            }
            NetlinkPayload::Noop => true,
            _ => false,
        })?;
        failed.map_or(Ok(found), |errno| Err(NetlinkError::new(what, errno)))
    }

    fn turn(&self) -> MutexGuard<'_, u32> {
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(
        &self,
        what: &str,
        turn: &mut u32,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32, NetlinkError> {
        let sequence = *turn;
        let mut bytes = Vec::with_capacity(128);
        append(&mut bytes, turn, message, flags);
        send(&self.socket, &bytes, SendFlags::empty()).map_err(|errno| NetlinkError::new(what, errno))?;
        Ok(sequence)
    }

    /// Reads answers from `first_sequence` on until `more` says that was all.
    fn answers(
        &self,
        what: &str,
        first_sequence: u32,
        mut more: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>) -> bool,
    ) -> Result<(), NetlinkError> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let (got, _) = match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                other => other.map_err(|errno| NetlinkError::new(what, errno))?,
            };
            let mut rest = &buffer[..got];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| NetlinkError::illegible(what, &error))?;
                let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                let sequence = message.header.sequence_number;
                // What is older answers a question that somebody stopped waiting for.
                if sequence >= first_sequence && !more(sequence, message.payload) {
                    return Ok(());
                }
                rest = &rest[length.max(16).min(rest.len())..];
            }
        }
    }
}

fn append(batch: &mut Vec<u8>, turn: &mut u32, message: RouteNetlinkMessage, flags: u16) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = *turn;
    *turn = turn.wrapping_add(1);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = batch.len();
    // Messages of a batch are aligned to four bytes.
    batch.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut batch[start..]);
}
