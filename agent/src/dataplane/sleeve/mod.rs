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
//! one; docs/performance-sleeve.md). Parallel work comes from more queues: the kernel
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
//! **Roaming.** A peer's packets go to where its newest authentic record came from.
//!
//! The crate `weave-sleeve` holds everything about packets; here are only files, threads and tables.

mod control;
mod counters;
mod inbound;
mod outbound;
mod published;
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
use self::published::Published;
use self::socket::Socket;
use self::table::{OpenSession, Table};
use super::tun::{Queue, Tun};

pub use self::control::{Peer, SessionSettings};
pub use self::counters::{Counters, CountersSnapshot};

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
        from: SocketAddr,
        /// Bytes of UDP payload that it was long: proof that so much passes.
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
    sockets: Vec<Arc<Socket>>,
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
    table: Arc<Published<Table>>,
    control: Mutex<Control>,
    count: Counters,
    wake: OwnedFd,
    stopping: AtomicBool,
    events: EventSink,
}

impl Engine {
    /// Starts the threads: one for each queue of the device.
    ///
    /// # Errors
    /// The address cannot be bound, or the system has no more threads.
    pub fn start(tun: Tun, listen: SocketAddr, events: EventSink) -> Result<Self, EngineError> {
        let queues = u8::try_from(tun.queues.len()).unwrap_or(u8::MAX);
        let sockets =
            Socket::bind_group(listen, queues).map_err(|source| EngineError::Bind { listen, source })?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| EngineError::Start(error.into()))?;
        let shared = Arc::new(Shared {
            table: Arc::new(Published::new(Table::default())),
            control: Mutex::default(),
            count: Counters::default(),
            wake,
            stopping: AtomicBool::new(false),
            events,
        });
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        let mut engine = Self { shared, sockets, threads: Vec::new() };
        for (queue, file) in tun.queues.into_iter().enumerate() {
            let Some(socket) = engine.sockets.get(queue) else { break };
            let (tun, socket, shared) = (Arc::new(file), Arc::clone(socket), Arc::clone(&engine.shared));
            let worker = Worker { queue, tun, socket, shared };
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
        let remote = self.sockets.first().map_or(settings.remote, |socket| socket.mapped(settings.remote));
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

    /// Sends `content` to a peer in a session, padded to `len` bytes of UDP payload. False if it could not be sent:
    /// no such session, or longer than the kernel says the path takes.
    pub fn probe(&self, session: u32, content: &[u8], len: usize) -> bool {
        let Some(socket) = self.sockets.first() else { return false };
        let too_long = self.shared.count.too_long_sent.now();
        let known = self.shared.control().probe(session, Probe { content, len }, socket, &self.shared.count);
        known && self.shared.count.too_long_sent.now() == too_long
    }

    /// Whether something authentic has come in this session since the last call with this number, and the new number.
    #[must_use]
    pub fn received(&self, session: u32) -> Option<u64> {
        self.shared.control().received(session)
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
