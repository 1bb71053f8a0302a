//! A queue's thread: both directions in turn, and when it sleeps.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::inbound::Inbound;
use super::outbound::Outbound;
use super::{Event, Worker};

/// Which files may have something.
#[derive(Clone, Copy)]
struct Ready {
    tun: bool,
    socket: bool,
}

/// Serves the queue until the engine stops or the device has vanished.
pub(super) fn run(worker: &Worker) {
    let (mut outbound, mut inbound) = (Outbound::new(worker.clone()), Inbound::new(worker.clone()));
    let mut ready = Ready { tun: true, socket: true };
    while !worker.shared.stopping.load(Ordering::Relaxed) {
        // The other end's packets first: what they bring has often been answered by the time the device is read.
        let more_to_receive = ready.socket && !inbound.turn();
        let more_to_read = (ready.tun || ready.socket) && !outbound.turn();
        ready = if more_to_receive || more_to_read {
            // Who has just emptied the socket while the device had more looks at the socket again before sleeping.
            Ready { tun: true, socket: true }
        } else {
            match sleep(worker) {
                Some(ready) => ready,
                None => return worker.shared.tell(Event::DeviceLost),
            }
        };
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
