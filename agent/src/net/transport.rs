//! A netlink socket: requests out, answers back, in order, and nothing else.
//!
//! Requests are synchronous in the kernel: when `send` returns, the work is done and the answers are queued on the
//! socket. So several requests may share one `send`, and reading never waits for anything but a bug; a receive
//! timeout turns that bug into an error. Both netlink families that the agent speaks (route and netfilter) frame
//! their messages alike, which is all that this module knows: length, type, flags, sequence number, and the
//! kernel's own error message with its text.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::RecvFlags;

/// Bytes before a message's payload.
pub(crate) const HEADER: usize = 16;
/// Largest datagram that the kernel sends: dumps are cut at the size of the reader's buffer, up to 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How many requests share one `send`. Each is answered by a packet on the socket, whose receive buffer (208 KiB by
/// default, counted in whole packets of about 1 KiB) must hold all of them.
const REQUESTS_A_SEND: usize = 48;
/// The kernel answers before `send` returns; waiting this long means that it never will.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Attribute of an extended acknowledgement that holds its text (NLMSGERR_ATTR_MSG).
const ERROR_TEXT: u16 = 1;
/// A dump that was interrupted by a change is asked for again, this often at most.
const DUMP_ATTEMPTS: usize = 8;

/// One message of an answer: its type, its flags, and what follows the header.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// A socket of one netlink family in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for requests of `protocol` (`netlink_sys::protocols`).
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both are conveniences of newer kernels: error texts, and filters in dumps (without them, dumps are longer).
        let _unsupported = socket.set_ext_ack(true);
        let _unsupported = socket.set_cap_ack(true);
        let _unsupported = socket.set_netlink_get_strict_chk(true);
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_PATIENCE),
        )?;
        Ok(Self { socket, port, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The number by which the kernel knows this socket.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// Sends requests (whole messages, sequence numbers still to be filled in, each asking for an acknowledgement),
    /// and returns the kernel's answer to each, in order.
    pub(crate) fn requests(&mut self, messages: &[Vec<u8>]) -> io::Result<Vec<io::Result<()>>> {
        let mut results = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(REQUESTS_A_SEND) {
            let first = self.sequence.wrapping_add(1);
            let mut datagram = Vec::new();
            for message in chunk {
                self.push(&mut datagram, message);
            }
            self.socket.send(&datagram, 0)?;
            let mut answers: Vec<Option<io::Result<()>>> = chunk.iter().map(|_| None).collect();
            while answers.iter().any(Option::is_none) {
                self.receive(|header, payload| {
                    let index = header.sequence.wrapping_sub(first) as usize;
                    if let (Some(slot), NLMSG_ERROR) = (answers.get_mut(index), header.kind) {
                        *slot = Some(acknowledgement(header.flags, payload));
                    }
                })?;
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends messages as one datagram that is a transaction, of which one message alone asks for an acknowledgement:
    /// what comes first, that or an error, speaks for all.
    pub(crate) fn transaction(&mut self, messages: &[Vec<u8>]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for message in messages {
            self.push(&mut datagram, message);
        }
        let last = self.sequence;
        self.socket.send(&datagram, 0)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(|header, payload| {
                let ours = header.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if header.kind == NLMSG_ERROR && ours && answer.is_none() {
                    answer = Some(acknowledgement(header.flags, payload));
                }
            })?;
        }
        // Errors of later messages may still be queued; they carry sequence numbers that no later request has, so
        // they are passed over.
        answer.unwrap_or(Ok(()))
    }

    /// Asks for a list. `message` is the whole request with the dump flag set.
    pub(crate) fn dump(&mut self, message: &[u8]) -> io::Result<Vec<Reply>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut datagram = Vec::new();
            self.push(&mut datagram, message);
            self.socket.send(&datagram, 0)?;
            if let Some(replies) = self.collect()? {
                return Ok(replies);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the list kept changing while it was read"))
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, message: &[u8]) -> io::Result<Reply> {
        let mut datagram = Vec::new();
        self.push(&mut datagram, message);
        self.socket.send(&datagram, 0)?;
        let mut found = self.collect()?.unwrap_or_default();
        found.pop().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the kernel answered with nothing"))
    }

    /// The messages that answer the last request; none if the dump was interrupted.
    fn collect(&mut self) -> io::Result<Option<Vec<Reply>>> {
        let sequence = self.sequence;
        let (mut replies, mut interrupted) = (Vec::new(), false);
        let mut end: Option<io::Result<()>> = None;
        while end.is_none() {
            self.receive(|header, payload| {
                if header.sequence != sequence || end.is_some() {
                    return;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE => end = Some(status(payload)),
                    NLMSG_ERROR => end = Some(acknowledgement(header.flags, payload)),
                    kind => {
                        replies.push(Reply { kind, payload: payload.to_vec() });
                        if header.flags & NLM_F_MULTIPART == 0 {
                            end = Some(Ok(()));
                        }
                    }
                }
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok((!interrupted).then_some(replies))
    }

    fn push(&mut self, datagram: &mut Vec<u8>, message: &[u8]) {
        self.sequence = self.sequence.wrapping_add(1);
        let at = datagram.len();
        datagram.extend_from_slice(message);
        datagram[at + 8..at + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }

    fn receive(&mut self, mut message: impl FnMut(Header, &[u8])) -> io::Result<()> {
        let (length, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
        split(&self.buffer[..length], &mut message);
        Ok(())
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What every message starts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The number of the socket that asked for what this tells of.
    pub(crate) sender: u32,
}

/// Calls `message` with each whole message of a datagram; a broken rest is left.
pub(crate) fn split(mut datagram: &[u8], message: &mut impl FnMut(Header, &[u8])) {
    while let (Some(length), Some(kind), Some(flags), Some(sequence), Some(sender)) =
        (word(datagram, 0), half(datagram, 4), half(datagram, 6), word(datagram, 8), word(datagram, 12))
    {
        let Some(payload) = datagram.get(HEADER..length as usize) else { return };
        message(Header { kind, flags, sequence, sender }, payload);
        datagram = datagram.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Calls `attribute` with type (flags of nesting and byte order cut off) and value of each attribute of a list.
pub(crate) fn attributes<'a>(mut list: &'a [u8], mut attribute: impl FnMut(u16, &'a [u8])) {
    const TYPE_MASK: u16 = 0x3fff;
    while let (Some(length), Some(kind)) = (half(list, 0), half(list, 2)) {
        let Some(value) = list.get(4..usize::from(length)) else { return };
        attribute(kind & TYPE_MASK, value);
        list = list.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The 32-bit number in machine order at `at`.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The 16-bit number in machine order at `at`.
pub(crate) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn status(payload: &[u8]) -> io::Result<()> {
    match word(payload, 0).map_or(0, u32::cast_signed) {
        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// The result in an error message: `int errno`, the header of the request, and attributes with a text.
fn acknowledgement(flags: u16, payload: &[u8]) -> io::Result<()> {
    let error = match status(payload) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let echoed = if flags & NLM_F_CAPPED != 0 { HEADER } else { word(payload, 4).unwrap_or(0) as usize };
    let mut text = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        attributes(payload.get(4 + echoed.next_multiple_of(4)..).unwrap_or_default(), |kind, value| {
            if kind == ERROR_TEXT {
                text = std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0').to_owned());
            }
        });
    }
    Err(match text {
        Some(text) => io::Error::new(error.kind(), KernelError { text, error }),
        None => error,
    })
}

/// An errno with the kernel's own words.
#[derive(Debug)]
struct KernelError {
    text: String,
    error: io::Error,
}

impl std::fmt::Display for KernelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.error, self.text)
    }
}

impl std::error::Error for KernelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The errno inside an error, also where the kernel added words of its own.
pub(crate) fn errno(error: &io::Error) -> Option<rustix::io::Errno> {
    let code = error.raw_os_error().or_else(|| {
        let inner = error.get_ref()?.downcast_ref::<KernelError>()?;
        inner.error.raw_os_error()
    });
    code.map(rustix::io::Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests;
