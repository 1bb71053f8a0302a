//! A queue's thread: both directions in turn, and when it sleeps.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::inbound::Inbound;
use super::outbound::{Outbound, READS_A_TURN};
use super::{Event, Worker};
use crate::dataplane::sys;

/// A sleep that was shorter than this was hardly worth its price: about what falling asleep and waking up cost.
const SHORT: Duration = Duration::from_micros(100);

/// So many short sleeps in a row, all for the same direction, are a flood and not a conversation.
const FLOOD: u32 = 16;

/// How long packets of a flood are left to gather. At 100,000 a second it makes one wake-up of six; it adds at most
/// this to a one-way stream's delay, and nothing to anything that is answered.
const GATHER: Duration = Duration::from_micros(60);

/// How long a turn on a processor is asked for to be. A shorter one is given sooner: a thread that has just been woken
/// by a packet then takes the place of whoever computes, instead of waiting for some milliseconds until his turn is over
/// (docs/performance.md). It is the shortest that the kernel grants.
const TURN: Duration = Duration::from_micros(100);

/// Which files may have something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ready {
    tun: bool,
    socket: bool,
}

impl Ready {
    const UNKNOWN: Self = Self { tun: true, socket: true };

    /// How many packets to ask the device for, after it was given some. Where it had none before, what it was given is
    /// answered by a packet each at most, as a rule (acknowledgements): who has as many does not ask for one more, since
    /// sleeping will show it. Who does not sleep now finds out what others have sent by asking for one at least.
    const fn reads(self, given: usize, sleepless: bool) -> usize {
        match (self.tun, given) {
            (true, _) => READS_A_TURN,
            (false, 0) if sleepless => 1,
            (false, given) => given,
        }
    }
}

/// Serves the queue until the engine stops or the device has vanished.
pub(super) fn run(worker: &Worker) {
    // Else the kernel rounds a sleep of GATHER up to twice as much. Refused, it only costs precision.
    let _: Result<(), Errno> = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
    // Older kernels know no such wish, and a container may forbid it: packets then wait longer on a busy machine.
    let _: io::Result<()> = sys::ask_for_short_turns(TURN);
    let (mut outbound, mut inbound) = (Outbound::new(worker.clone()), Inbound::new(worker.clone()));
    let mut ready = Ready::UNKNOWN;
    let mut pace = Pace::default();
    while !worker.shared.stopping.load(Ordering::Relaxed) {
        #[cfg(test)]
        worker.shared.allocated.store(super::tests::allocations::of_this_thread(), Ordering::Relaxed);
        // The other end's packets first: what they bring has often been answered by the time the device is read.
        let more_to_receive = ready.socket && !inbound.turn();
        let most = ready.reads(inbound.take_delivered(), more_to_receive);
        let more_to_read = !outbound.turn(most) && (ready.tun || more_to_receive);
        if more_to_receive || more_to_read {
            // Who has just emptied the socket while the device had more looks at the socket again before sleeping.
            ready = Ready { tun: more_to_read, socket: true };
            continue;
        }
        let asleep = Instant::now();
        let Some(woken) = sleep(worker) else { return worker.shared.tell(Event::DeviceLost) };
        ready = woken;
        if pace.is_flood(asleep.elapsed(), ready) {
            std::thread::sleep(GATHER);
        }
    }
}

/// Until there is something to do. None if the device has vanished: reading it would fail, and waiting for it would
/// return at once, for ever.
fn sleep(worker: &Worker) -> Option<Ready> {
    let mut files = [
        PollFd::from_borrowed_fd(worker.tun.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(worker.socket.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(worker.shared.wake.as_fd(), PollFlags::IN),
    ];
    match rustix::event::poll(&mut files, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => tracing::error!(%error, "waiting for packets failed"),
    }
    let [tun, socket, _] = files.map(|file| file.revents());
    (!tun.contains(PollFlags::ERR)).then_some(Ready { tun: !tun.is_empty(), socket: !socket.is_empty() })
}

/// Tells a flood from a conversation.
///
/// A sender of single datagrams wakes the thread for each of them, if the thread is the faster one: then every packet
/// pays for a wake-up here and for one at the other end. Letting some gather costs such a stream nothing that it
/// could notice. But whatever goes back and forth, be it a ping, requests or acknowledgements, shows packets of both
/// directions, and is never held up.
#[derive(Debug, Default)]
struct Pace {
    direction: Option<Ready>,
    streak: u32,
}

impl Pace {
    /// Whether to let packets gather, after a sleep of `slept` that ended with `ready`.
    fn is_flood(&mut self, slept: Duration, ready: Ready) -> bool {
        let one_way = ready.tun != ready.socket;
        if slept < SHORT && one_way && self.direction == Some(ready) {
            self.streak = self.streak.saturating_add(1);
        } else {
            self.streak = 0;
        }
        self.direction = Some(ready);
        self.streak >= FLOOD
    }
}

#[cfg(test)]
mod tests;
