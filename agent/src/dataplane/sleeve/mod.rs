//! The sleeve engine: threads that carry packets between the device and one UDP port, sealed.
//!
//! ```text
//!            ┌ outbound ─▶ read ─ look up ─ cut, seal ─ segmented send ─▶ ┐
//! weave-tun ─┤                                                             ├─ UDP 6785
//!            └ inbound  ◀─ write ─ join ─ open ─ replay ─ receive run ◀─── ┘
//! ```
//!
//! **Threads.** One operating system thread a queue, since a task that had to be woken by a runtime would cost more
//! than a packet does. It serves both directions in turn: a TCP stream is answered by acknowledgements, and with a
//! thread a direction each of them woke a second thread (measured: a sixth less processor time for the same bytes with
//! one; docs/performance.md). Parallel work comes from more queues: the kernel
//! keeps a flow on its queue of the device, and the queue byte of a record brings it to the thread of the same number
//! at the other end, so no flow is reordered. A thread sleeps in `poll` on its two files and on one event file, which
//! is written once, to stop.
//!
//! **Tables.** The threads share no lock with whoever decides. They read an immutable [`table`](self) that is replaced
//! whole; a packet costs them one load to see that it has not been. What is rare goes the other way through
//! [`Shared`]: a peer's address has changed, an epoch was opened or confirmed, a probe came.
//!
//! **Sessions.** The owner hands over a secret for each QUIC connection ([`Engine::open_session`]) and says with which
//! session to send to a peer ([`Engine::set_peers`]). All sessions open at any time; so a new or a duplicate connection
//! interrupts nothing. Epochs follow from [`weave_sleeve::session`]; the owner only calls [`Engine::maintain`] now and
//! then.
//!
//! **Roaming.** A peer's packets go to where its newest authentic record came from by UDP.
//!
//! **Carriers.** A session's records travel by UDP, by a QUIC connection ([`quic`](self)), or in relay frames by way of
//! another node, which are forwarded here without being opened: whole runs, in place. The owner says for each peer how
//! to send to it and how relay frames get to it ([`Peer`]); what comes is taken by whatever way it comes.
//!
//! The crate `weave-sleeve` holds everything about packets; here are only files, threads and tables.

mod carrier;
mod control;
mod counters;
mod inbound;
mod intake;
mod outbound;
mod published;
mod quic;
mod socket;
mod table;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::EventfdFlags;
use weave_proto::PeerName;

use self::control::{Control, Probe};
use self::intake::Intake;
use self::published::Published;
use self::socket::Socket;
use self::table::{OpenSession, Table};
use super::tun::{Queue, Tun};
use crate::task::{self, Task};

pub use self::carrier::{Carrier, Hop, SendWith, Source};
pub use self::control::{Peer, SessionSettings};
pub use self::counters::{Counters, CountersSnapshot};
pub use self::quic::{MAX_UDP_PAYLOAD, QuicLink, tune};

/// The UDP port of sleeve.
pub const PORT: u16 = 6785;

/// What the engine tells its owner. Rare: none of it is about single packets, except probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer's probe has come.
    Probe {
        /// Who sent it.
        peer: PeerName,
        /// In which session, by the own index.
        session: u32,
        /// Where it came from.
        from: Source,
        /// Bytes of the datagram that it was: proof that so much passes.
        len: usize,
        /// What it said, with its padding.
        content: Box<[u8]>,
    },
    /// A peer's records come from another address now, and records to it go there.
    Roamed {
        /// Who.
        peer: PeerName,
        /// From where.
        to: SocketAddr,
    },
    /// How long a datagram may be on a QUIC connection: told when it begins to be read, and when that has changed.
    QuicLargest {
        /// The connection.
        link: QuicLink,
        /// Bytes; 0 if the other end takes none.
        largest: usize,
    },
    /// A QUIC connection has ended. Nothing comes by it any more.
    QuicLost {
        /// The connection.
        link: QuicLink,
        /// Why.
        why: String,
    },
    /// The device has vanished; the engine has to be made anew.
    DeviceLost,
}

/// Takes events. Called from the packet threads, so it must not wait.
pub type EventSink = Box<dyn Fn(Event) + Send + Sync>;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The port is taken or forbidden.
    #[error("bind UDP {listen}: {source}")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No event file or thread.
    #[error("start the sleeve threads: {0}")]
    Start(#[source] io::Error),
}

/// The running engine. Stops when dropped.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    threads: Vec<JoinHandle<()>>,
}

/// What one queue's threads work with.
#[derive(Clone)]
struct Worker {
    queue: usize,
    tun: Arc<Queue>,
    socket: Arc<Socket>,
    shared: Arc<Shared>,
}

/// What the threads and the owner share.
struct Shared {
    /// This node.
    name: PeerName,
    table: Arc<Published<Table>>,
    control: Mutex<Control>,
    count: Counters,
    wake: OwnedFd,
    stopping: AtomicBool,
    events: EventSink,
    /// How often the packet thread has allocated; with several, one of them.
    #[cfg(test)]
    allocated: std::sync::atomic::AtomicU64,
}

impl Engine {
    /// Starts the threads of the node `name`: one for each queue of the device.
    ///
    /// # Errors
    /// The address cannot be bound, or the system has no more threads.
    pub fn start(
        name: PeerName,
        tun: Tun,
        listen: SocketAddr,
        events: EventSink,
    ) -> Result<Self, EngineError> {
        let queues = u8::try_from(tun.queues.len()).unwrap_or(u8::MAX);
        let sockets =
            Socket::bind_group(listen, queues).map_err(|source| EngineError::Bind { listen, source })?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| EngineError::Start(error.into()))?;
        let shared = Arc::new(Shared {
            name,
            table: Arc::new(Published::new(Table::default())),
            control: Mutex::new(Control::new(name)),
            count: Counters::default(),
            wake,
            stopping: AtomicBool::new(false),
            events,
            #[cfg(test)]
            allocated: Default::default(),
        });
        let mut engine = Self { shared, workers: Vec::new(), threads: Vec::new() };
        for (queue, (file, socket)) in tun.queues.into_iter().zip(sockets).enumerate() {
            let (tun, socket, shared) = (Arc::new(file), Arc::new(socket), Arc::clone(&engine.shared));
            let worker = Worker { queue, tun, socket, shared };
            engine.workers.push(worker.clone());
            engine.spawn(format!("sleeve-{queue}"), worker)?;
        }
        Ok(engine)
    }

    fn spawn(&mut self, name: String, worker: Worker) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name).spawn(move || worker::run(&worker));
        self.threads.push(thread.map_err(EngineError::Start)?);
        Ok(())
    }

    /// Replaces the peers: who owns which inner addresses, and with which session to send.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        self.shared.change(|control| control.set_peers(peers));
    }

    /// Begins to open the records of a session. Sending moves to it when [`Engine::set_peers`] says so.
    pub fn open_session(&self, settings: SessionSettings, exported: &[u8], now: Instant) {
        let first = self.workers.first();
        let remote = first.map_or(settings.remote, |worker| worker.socket.mapped(settings.remote));
        self.shared.change(|control| {
            control.open_session(SessionSettings { remote, ..settings }, exported, now);
        });
    }

    /// Forgets a session and its keys.
    pub fn close_session(&self, index: u32) {
        self.shared.change(|control| control.close_session(index));
    }

    /// Moves epochs on. To be called at the moment that it returned, or once a second: counts of records are looked
    /// at only here.
    pub fn maintain(&self, now: Instant) -> Option<Instant> {
        let mut deadline = None;
        self.shared.change(|control| {
            deadline = control.maintain(now);
        });
        deadline
    }

    /// Sends `content` to a peer in a session, by `carrier`, in a datagram padded to `len` bytes. False if it could
    /// not be sent: no such session or way, or longer than is known to pass.
    pub fn probe(&self, session: u32, carrier: &Carrier, content: &[u8], len: usize) -> bool {
        let Some(Worker { socket, .. }) = self.workers.first() else { return false };
        let count = &self.shared.count;
        let refused = || count.too_long_sent.now() + count.send_failures.now() + count.quic_queue_full.now();
        let before = refused();
        let probe = Probe { session, carrier, content, len };
        self.shared.control().probe(probe, socket, count) && refused() == before
    }

    /// Takes what comes by a QUIC connection with `peer`, until it ends or the task is dropped, and makes it a carrier.
    /// Needs a tokio runtime. None only if the device has no queue.
    pub fn carry(&self, peer: PeerName, connection: quinn::Connection) -> Option<(QuicLink, Task)> {
        let intake = Intake::new(self.workers.first()?);
        let link = QuicLink::new(peer, connection);
        let reading = quic::read(link.clone(), Arc::clone(&self.shared), intake);
        Some((link, task::spawn("quic carrier", reading)))
    }

    /// How many authentic records have come in this session, probes included.
    #[must_use]
    pub fn received(&self, session: u32) -> Option<u64> {
        self.shared.control().received(session)
    }

    /// How many records of packets were sealed in this session; probes do not count.
    #[must_use]
    pub fn sealed(&self, session: u32) -> Option<u64> {
        self.shared.control().sealed(session)
    }

    /// How many frames of others, probes among them, were sent on to the peer of this session; none if it is not open.
    #[must_use]
    pub fn relayed(&self, session: u32) -> Option<u64> {
        self.shared.control().relayed(session)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        self.shared.count.snapshot()
    }

    /// Stops the threads and waits for them. The device persists.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Cannot fail: the counter is zero. It is never read, so every thread that polls sees it.
        let _: Result<usize, _> = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a sleeve thread had panicked");
            }
        }
    }
}

impl Shared {
    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` decide something, and publishes the table if that changed it.
    fn change(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.control();
        change(&mut control);
        if let Some(table) = control.take_table() {
            self.table.replace(table);
        }
    }

    fn tell(&self, event: Event) {
        (self.events)(event);
    }

    #[cold]
    fn on_opened(&self, session: u32, epoch: u8) {
        self.change(|control| control.handle_opened(session, epoch, Instant::now()));
    }

    #[cold]
    fn on_confirmed(&self, session: u32, epoch: u8) {
        self.change(|control| control.handle_confirmed(session, epoch));
    }

    #[inline]
    fn on_source(&self, session: &OpenSession, from: SocketAddr) {
        if session.remote != from {
            self.on_roamed(session, from);
        }
    }

    #[cold]
    fn on_roamed(&self, session: &OpenSession, to: SocketAddr) {
        let mut moved = false;
        self.change(|control| moved = control.handle_source(session.index, to));
        if moved {
            self.tell(Event::Roamed { peer: session.peer, to });
        }
    }
}

#[cfg(test)]
mod tests;
