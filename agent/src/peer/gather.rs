//! QUIC's socket and its tasks, so that more is sent by one call than quinn hands over.
//!
//! quinn sends at most ten datagrams at once, and twenty before another task has its turn. A way through the kernel costs
//! more than the ten packets that take it. So what a task of quinn's sends in bulk is gathered during its turn, and
//! leaves when the turn is over or 64 KiB have come together. Single datagrams are not held back, nor is anything that is
//! sent outside of such a turn.
//!
//! What is gathered belongs to the thread while the turn lasts, so connections that send at the same time do not wait for
//! each other. What the socket does not take at the end of a turn stays with the task until it does.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

/// Bytes in one segmented send: the UDP payload that fits an IPv6 packet's length field, so either family's.
const MOST: usize = 65_535 - 40 - 8;

/// Datagrams in one segmented send: what every kernel with `UDP_SEGMENT` takes.
const MOST_SEGMENTS: usize = 64;

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// What the task whose turn it is on this thread has sent in bulk; none between turns.
    static TURN: RefCell<Option<Bulk>> = const { RefCell::new(None) };
    /// The buffer of the turn before.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes an endpoint's runtime and socket.
pub(super) fn over(socket: std::net::UdpSocket) -> io::Result<(Arc<dyn Runtime>, Arc<dyn AsyncUdpSocket>)> {
    let socket = Arc::new(Socket(TokioRuntime.wrap_udp_socket(socket)?));
    Ok((Arc::new(Gathering(Arc::clone(&socket))), socket))
}

/// tokio, but for how quinn's tasks send.
#[derive(Debug)]
struct Gathering(Arc<Socket>);

impl Runtime for Gathering {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, driver: Driver) {
        TokioRuntime.spawn(Box::pin(Turns {
            driver: Some(driver),
            left: None,
            poller: Arc::clone(&self.0.0).create_io_poller(),
            socket: Arc::clone(&self.0.0),
        }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket(TokioRuntime.wrap_udp_socket(socket)?)))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// The socket, which keeps what is sent in bulk during a turn.
#[derive(Debug)]
struct Socket(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        TURN.with_borrow_mut(|turn| match turn {
            Some(bulk) => bulk.take(transmit, &*self.0),
            None => self.0.try_send(transmit),
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// Datagrams of one length, of which the last may be shorter, that go the same way; none without a way.
struct Bulk {
    bytes: Vec<u8>,
    way: Option<Way>,
}

/// What datagrams of one segmented send have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
}

impl Bulk {
    /// Adds what is sent, after sending what it cannot be added to; or sends it.
    fn take(&mut self, transmit: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let Transmit { destination, ecn, contents, segment_size, src_ip: source } = *transmit;
        let segment = segment_size.filter(|_| socket.max_transmit_segments() > 1);
        let way = segment.map(|segment| Way { destination, source, ecn, segment });
        if way.is_none() || way != self.way || !self.has_room(contents.len()) {
            self.send(socket)?;
        }
        let Some(way) = way else { return socket.try_send(transmit) };
        self.bytes.extend_from_slice(contents);
        self.way = Some(way);
        Ok(())
    }

    /// Whether more may follow on what is there.
    fn has_room(&self, len: usize) -> bool {
        let Some(Way { segment, .. }) = self.way else { return true };
        let all = self.bytes.len() + len;
        self.bytes.len().is_multiple_of(segment) && all <= MOST.min(MOST_SEGMENTS * segment)
    }

    /// Sends what is there. It stays if the socket is full.
    fn send(&mut self, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let Some(Way { destination, source, ecn, segment }) = self.way else { return Ok(()) };
        let segment_size = (segment < self.bytes.len()).then_some(segment);
        socket.try_send(&Transmit {
            destination,
            ecn,
            contents: &self.bytes,
            segment_size,
            src_ip: source,
        })?;
        self.bytes.clear();
        self.way = None;
        Ok(())
    }
}

/// A task of quinn's, in turns.
struct Turns {
    /// None when it has ended and something is left to be sent.
    driver: Option<Driver>,
    /// What the socket did not take.
    left: Option<Bulk>,
    poller: Pin<Box<dyn UdpPoller>>,
    socket: Arc<dyn AsyncUdpSocket>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.send_left(cx);
        // While the socket is full, quinn sees so for itself.
        if self.left.is_none() {
            TURN.set(Some(Bulk { bytes: BUFFER.take(), way: None }));
        }
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
        if let Some(mut bulk) = TURN.take() {
            if bulk.send(&*self.socket).is_ok() {
                BUFFER.set(bulk.bytes);
            } else {
                self.left = Some(bulk);
                self.send_left(cx);
            }
        }
        if self.driver.is_none() && self.left.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Turns {
    /// Sends what was left, or sees to it that the task is woken when that can be tried again.
    fn send_left(&mut self, cx: &mut Context<'_>) {
        while let Some(bulk) = &mut self.left {
            // quinn-udp reports nothing but a full socket; after anything else there is nothing to be saved.
            let full = bulk.send(&*self.socket).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            if !full {
                self.left = None;
            } else if self.poller.as_mut().poll_writable(cx).is_pending() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
