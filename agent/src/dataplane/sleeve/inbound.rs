//! Socket → [`super::intake`].

use std::io::ErrorKind;
use std::sync::Arc;

use super::Worker;
use super::carrier::Source;
use super::intake::{Arrival, Intake};
use super::socket::Socket;
use crate::dataplane::sys::udp::{MAX_RUNS, Tray};

/// Receive calls before the other direction has its turn.
const RECEIVES_A_TURN: usize = 2;

/// Long runs that one call receives: as much as stays in the processor's cache until it is opened.
const LONG_RUNS: usize = 4;

/// Runs of at least this many bytes on average are long.
const LONG: usize = 16_384;

pub(super) struct Inbound {
    socket: Arc<Socket>,
    intake: Intake,
    tray: Tray,
    /// Runs that the next call receives at most: many where datagrams come one by one.
    most: usize,
    worker: Worker,
}

impl Inbound {
    pub(super) fn new(worker: Worker) -> Self {
        let (socket, intake) = (Arc::clone(&worker.socket), Intake::new(&worker));
        Self { socket, intake, tray: Tray::new(), most: LONG_RUNS, worker }
    }

    /// One turn: receives what the socket has, up to a limit, and writes it to the device. Whether the socket had
    /// nothing more.
    pub(super) fn turn(&mut self) -> bool {
        let drained = self.receive();
        if drained {
            self.intake.flush();
        }
        drained
    }

    /// How many packets the device was given since this was last asked.
    pub(super) fn take_delivered(&mut self) -> usize {
        self.intake.take_delivered()
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
            let bytes: usize = (0..count).map(|at| self.take(at)).sum();
            self.most = if bytes >= count * LONG { LONG_RUNS } else { MAX_RUNS };
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
