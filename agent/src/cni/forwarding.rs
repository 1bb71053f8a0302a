//! Whether packets pass between the bridge and a pod yet.
//!
//! Three things follow from the pod's end coming up, one after the other, each from a work queue of the kernel: the
//! host's end hears of its carrier and may send; the bridge hears of that and enables the port; and a bridge without
//! any other pod has a carrier of its own now and may send. Usually all this takes a millisecond, on a busy machine much
//! longer. An ADD that answered before would hand out a network that swallows the first packets.
//!
//! The kernel enables a port early, too, when its link is set up before its missing carrier was noticed, and takes that
//! back later. So the port's state says something only beside the link's own.

use std::time::Duration;

use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage, State,
};

use super::netlink::{Netlink, NetlinkError};

/// How long to wait between looks, in milliseconds: about a second in all. The kernel spaces its own looks by a second
/// at most.
const PAUSES: [u64; 11] = [0, 1, 1, 2, 4, 8, 16, 32, 64, 256, 640];

/// Waits until packets pass both ways between a bridge and its port; whether they do in the end.
///
/// # Errors
/// The kernel refuses to say.
pub(super) fn await_forwarding(host: &Netlink, bridge: &str, port: &str) -> Result<bool, NetlinkError> {
    for pause in PAUSES {
        // On a thread for blocking work.
        std::thread::sleep(Duration::from_millis(pause));
        // The port first: what it lacks, the bridge lacks as well.
        if host.link(port)?.is_some_and(|link| sends(&link) && forwards(&link))
            && host.link(bridge)?.is_some_and(|link| sends(&link))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the kernel has acted on the link's carrier.
fn sends(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}

/// Whether the link is a port that its bridge has enabled.
fn forwards(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None }
    });
    let port = infos.into_iter().flatten().find_map(|info| {
        if let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info { Some(port) } else { None }
    });
    port.is_some_and(|port| port.contains(&InfoBridgePort::State(BridgePortState::Forwarding)))
}
