//! Whether the bridge forwards for a pod's port yet.
//!
//! The kernel enables a port when it hears of the link's carrier, and it hears of that from a work queue: usually within
//! a millisecond of the pod's end coming up, on a busy machine much later. An ADD that answered before that would hand
//! out a network that swallows the first packets.

use std::time::Duration;

use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};

use super::netlink::{Netlink, NetlinkError};

/// How long to wait between looks, in milliseconds: about a second in all. The kernel spaces its own looks by a second
/// at most.
const PAUSES: [u64; 11] = [0, 1, 1, 2, 4, 8, 16, 32, 64, 256, 640];

/// Waits until the bridge forwards for the port; whether it does in the end. A link that is no port of a bridge has
/// nothing to wait for.
///
/// # Errors
/// The kernel refuses to say.
pub(super) fn await_forwarding(host: &Netlink, port: &str) -> Result<bool, NetlinkError> {
    for pause in PAUSES {
        // On a thread for blocking work.
        std::thread::sleep(Duration::from_millis(pause));
        match host.link(port)?.as_ref().and_then(port_state) {
            None | Some(BridgePortState::Forwarding) => return Ok(true),
            Some(_) => {}
        }
    }
    Ok(false)
}

/// The port's state, if the link is a port of a bridge.
fn port_state(link: &LinkMessage) -> Option<BridgePortState> {
    let infos = link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None }
    })?;
    let port = infos.iter().find_map(|info| {
        if let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info { Some(port) } else { None }
    })?;
    port.iter().find_map(|data| if let InfoBridgePort::State(state) = data { Some(*state) } else { None })
}
