//! Socket → [`super::intake`].

use std::io::ErrorKind;
use std::sync::Arc;

use super::Worker;
use super::carrier::Source;
use super::intake::{Arrival, Intake};
use super::socket::Socket;

/// The longest run that `UDP_GRO` gives.
const BUFFER_LEN: usize = 65_536;

/// Receive calls before the other direction has its turn.
const RECEIVES_A_TURN: usize = 8;

pub(super) struct Inbound {
    socket: Arc<Socket>,
    intake: Intake,
    buffer: Box<[u8]>,
    worker: Worker,
}

impl Inbound {
    pub(super) fn new(worker: Worker) -> Self {
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Self { socket: Arc::clone(&worker.socket), intake: Intake::new(&worker), buffer, worker }
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

    fn receive(&mut self) -> bool {
        for _ in 0..RECEIVES_A_TURN {
            let received = match self.socket.receive(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // What an earlier send ran into (ICMP) is reported here, too. It says nothing about receiving.
                Err(_) => continue,
            };
            if received.truncated || received.len == 0 {
                self.worker.shared.count.unknown_records.one();
                continue;
            }
            let arrival = Arrival {
                source: Source::Udp(received.from),
                segment: received.segment,
                traffic_class: received.traffic_class,
            };
            self.intake.batch(&mut self.buffer[..received.len], &arrival);
        }
        false
    }
}
