//! Socket → [`super::intake`].

use std::io::ErrorKind;
use std::sync::Arc;

use super::Worker;
use super::carrier::Source;
use super::intake::{Arrival, Delivered, Intake};
use super::socket::Socket;
use crate::dataplane::sys::udp::{MAX_RUNS, Tray};

/// Receive calls before the other direction has its turn.
const RECEIVES_A_TURN: usize = 2;

/// Long runs that one call receives: as much as stays in the processor's cache until it is opened.
const LONG_RUNS: usize = 8;

/// Runs of at least this many bytes on average are long.
const LONG: usize = 16_384;

/// Runs to receive by the next call, after one that brought `count` runs of `bytes` in all.
const fn next_most(count: usize, bytes: usize, burst: bool) -> usize {
    if bytes < count * LONG {
        MAX_RUNS
    } else if burst {
        1
    } else {
        LONG_RUNS
    }
}

pub(super) struct Inbound {
    socket: Arc<Socket>,
    intake: Intake,
    tray: Tray,
    /// Runs that the next call receives at most: many where datagrams come one by one.
    most: usize,
    delivered: Delivered,
    /// Whether a burst was delivered since the socket was last empty.
    after_burst: bool,
    worker: Worker,
}

impl Inbound {
    pub(super) fn new(worker: Worker) -> Self {
        let (socket, intake) = (Arc::clone(&worker.socket), Intake::new(&worker));
        let delivered = Delivered::default();
        Self { socket, intake, tray: Tray::new(), most: LONG_RUNS, delivered, after_burst: false, worker }
    }

    /// One turn: receives what the socket has, up to a limit, and writes it to the device. Whether the socket had
    /// nothing more.
    pub(super) fn turn(&mut self) -> bool {
        let drained = self.receive();
        if drained {
            self.intake.flush();
            self.after_burst = false;
        }
        drained
    }

    /// How many packets, joined ones as one, the device was given since this was last asked.
    pub(super) fn take_delivered(&mut self) -> usize {
        self.note_delivered();
        std::mem::take(&mut self.delivered).packets
    }

    fn note_delivered(&mut self) -> Delivered {
        let now = self.intake.take_delivered();
        self.delivered.packets += now.packets;
        now
    }

    /// Whether there is nothing more.
    fn receive(&mut self) -> bool {
        for _ in 0..RECEIVES_A_TURN {
            let most = self.most;
            let count = match self.socket.receive(&mut self.tray, most) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // What an earlier send ran into (ICMP) is reported here, too. It says nothing about receiving.
                Err(_) => continue,
            };
            if self.after_burst {
                // The socket that the burst before went to has room for one, and whoever reads it may be waiting for
                // this very processor: one that follows at once would be dropped there.
                rustix::thread::sched_yield();
            }
            let bytes: usize = (0..count).map(|at| self.take(at)).sum();
            self.after_burst = self.note_delivered().bursts > 0;
            self.most = next_most(count, bytes, self.after_burst);
            if count < most {
                return true;
            }
        }
        false
    }

    /// Takes a run that came by the last call, and returns its length.
    fn take(&mut self, at: usize) -> usize {
        let Some((received, run)) =
            self.tray.run(at).filter(|(received, _)| !received.truncated && received.len > 0)
        else {
            self.worker.shared.count.unknown_records.one();
            return 0;
        };
        let arrival = Arrival {
            source: Source::Udp(received.from),
            segment: received.segment,
            traffic_class: received.traffic_class,
        };
        self.intake.batch(run, &arrival);
        received.len
    }
}

#[cfg(test)]
mod tests;
