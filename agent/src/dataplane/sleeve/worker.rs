//! The threads: which direction runs where, and when it sleeps.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::inbound::Inbound;
use super::outbound::Outbound;
use super::{Event, Worker};

/// Which directions one thread serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Device to socket.
    Out,
    /// Socket to device.
    In,
    /// Both, in turn.
    Both,
}

/// Serves its directions until the engine stops or the device has vanished.
pub(super) fn run(worker: &Worker, duty: Duty) {
    let mut outbound = (duty != Duty::In).then(|| Outbound::new(worker.clone()));
    let mut inbound = (duty != Duty::Out).then(|| Inbound::new(worker.clone()));
    let shared = &worker.shared;
    let (mut readable, mut received) = (true, true);
    while !shared.stopping.load(Ordering::Relaxed) {
        if received {
            received = inbound.as_mut().is_some_and(|inbound| !inbound.turn());
        }
        // What was just written to the device has often been answered already.
        readable = outbound.as_mut().is_some_and(|outbound| !outbound.turn());
        if readable || received {
            received = true;
            continue;
        }
        let tun = worker.tun.as_fd();
        let socket = worker.socket.as_fd();
        let wake = shared.wake.as_fd();
        let (of_tun, of_socket) = (
            if outbound.is_some() { PollFlags::IN } else { PollFlags::empty() },
            if inbound.is_some() { PollFlags::IN } else { PollFlags::empty() },
        );
        let mut fds =
            [PollFd::new(&wake, PollFlags::IN), PollFd::new(&tun, of_tun), PollFd::new(&socket, of_socket)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "waiting for packets failed"),
        }
        let [_, of_tun, of_socket] = fds.map(|fd| fd.revents());
        // The device has been deleted under us. Reading would fail and polling return at once, for ever.
        if of_tun.contains(PollFlags::ERR) {
            return shared.tell(Event::DeviceLost);
        }
        received = !of_socket.is_empty();
    }
}
