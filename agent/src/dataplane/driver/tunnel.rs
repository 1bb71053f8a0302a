//! The engine in user space, started or refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::sync::mpsc;

use super::Settings;
use crate::dataplane::sleeve::{Engine, Event, PORT};
use crate::dataplane::tun::Tun;
use crate::net::names;

/// Probes that may wait. What does not fit is a lost probe, which will be repeated.
const PROBES: usize = 1024;

/// The tunnels in user space: running, or why they cannot be.
pub struct Tunnel {
    pub(super) engine: Engine,
    probes: mpsc::Receiver<Event>,
    /// Everything else: rare, and told once.
    changes: mpsc::UnboundedReceiver<Event>,
    pub(super) queues: u8,
}

impl Tunnel {
    /// Makes the device and starts the threads.
    ///
    /// # Errors
    /// A sentence that says what is missing and the remedy.
    pub fn start(settings: &Settings) -> Result<Self, String> {
        let tun = Tun::open(names::TUN, queues()).map_err(|error| error.to_string())?;
        let queues = u8::try_from(tun.queues.len()).unwrap_or(1);
        let (to_probes, probes) = mpsc::channel(PROBES);
        let (to_changes, changes) = mpsc::unbounded_channel();
        let sink = Box::new(move |event| match matches!(event, Event::Probe { .. }) {
            true => drop(to_probes.try_send(event)),
            // Fails only when nobody wants to know any more.
            false => drop(to_changes.send(event)),
        });
        let listen = |host: IpAddr| SocketAddr::new(host, PORT);
        let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let host = settings.host.unwrap_or_else(|| if has_ipv6() { all[0] } else { all[1] });
        let engine = Engine::start(settings.name, tun, listen(host), sink).map_err(|error| {
            format!("{error}: is another agent running, or does something else use UDP {PORT}?")
        })?;
        Ok(Self { engine, probes, changes, queues })
    }

    /// What the engine tells next; none if it has ended. May be cancelled without loss.
    pub(super) async fn event(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            change = self.changes.recv() => change,
            probe = self.probes.recv() => probe,
        }
    }
}

/// Half of the processors, since pods need the others, and not more than have ever been of use.
fn queues() -> u8 {
    const MOST: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from((processors / 2).clamp(1, MOST)).unwrap_or(1)
}

fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}
