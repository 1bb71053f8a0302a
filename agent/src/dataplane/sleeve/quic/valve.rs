//! The congestion controller of a connection that carries other people's packets.
//!
//! The flows inside control their own congestion: they lose packets on the path, and they slow down. A second
//! controller around them would do the same work again, later and for all of them at once. So this one is a valve: it
//! is open (no limit, no pacing) while less than a bound is in flight, and shut else. The bound matters only to what
//! does not slow down:
//!
//! * It is wide: a path of 10 Gb/s and 6 ms is filled.
//! * When more than a quarter of a round's bytes were lost, whoever sends does not listen, and it is halved, down to
//!   a floor; a round with less than a sixteenth lost doubles it again. Inner flows that do listen never come near,
//!   and a path that loses every tenth packet at random keeps all of its bound.
//! * A congestion mark on the connection's own packets (which the flows inside cannot see) narrows it by an eighth a
//!   round; what then does not fit is dropped before it is sent, which they do see.
//!
//! quinn paces by a timer of a millisecond, which would hold up a short path many times its round trip. It does not
//! pace where the window is wider than 32 bits, so an open valve tells it one of 40 bits.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Bytes in flight at most, ever.
const CEILING: u64 = 8 << 20;
/// Bytes in flight at most, however much is lost: some 40 packets.
const FLOOR: u64 = 64 << 10;
/// Where a connection begins.
const INITIAL: u64 = 1 << 20;
/// A window that quinn does not pace.
const OPEN: u64 = 1 << 40;

/// Makes valves.
#[derive(Debug)]
pub(super) struct Valves;

impl ControllerFactory for Valves {
    fn build(self: Arc<Self>, now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Valve::new(now))
    }
}

/// One connection's valve.
#[derive(Debug, Clone)]
struct Valve {
    bound: u64,
    /// Counted here too, since quinn does not tell it when it asks for the window; set right at each acknowledgement.
    in_flight: u64,
    round: Round,
}

/// What became of what was sent in about one round trip.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    acked: u64,
    lost: u64,
    marked: bool,
}

impl Round {
    const fn new(now: Instant) -> Self {
        Self { began: now, acked: 0, lost: 0, marked: false }
    }

    /// The bound that follows from it.
    fn bound(self, before: u64) -> u64 {
        let Self { acked, lost, marked, .. } = self;
        let all = acked + lost;
        let next = if lost > all / 4 {
            before / 2
        } else if marked {
            before - before / 8
        } else if lost < all / 16 {
            before * 2
        } else {
            before
        };
        next.clamp(FLOOR, CEILING)
    }
}

impl Valve {
    const fn new(now: Instant) -> Self {
        Self { bound: INITIAL, in_flight: 0, round: Round::new(now) }
    }

    fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        // What was sent after the round began has come back: the round is over.
        if sent > self.round.began {
            self.bound = self.round.bound(self.bound);
            self.round = Round::new(now);
        }
        self.round.acked += bytes;
    }
}

impl Controller for Valve {
    fn on_sent(&mut self, _now: Instant, bytes: u64, _last_packet_number: u64) {
        self.in_flight += bytes;
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.handle_ack(now, sent, bytes);
    }

    fn on_end_acks(&mut self, _now: Instant, in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.in_flight = in_flight;
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, lost_bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(lost_bytes);
        self.round.lost += lost_bytes;
        self.round.marked |= lost_bytes == 0;
    }

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        if self.in_flight < self.bound { OPEN } else { self.bound }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
