//! What the rooms want an operator to read.

use weave_router::Notice;
use weave_topology::Notice as Mesh;

/// Writes a notice with the weight that its readers give it. The allocator's lines are logged as that room's, so that
/// `grep ipalloc` finds them, as people have always done.
pub(super) fn notice(notice: &Notice) {
    match notice {
        Notice::Ipam(notice) => tracing::info!(target: "weave_ipam", "{notice}"),
        Notice::Overlay(moved, nickname) => {
            let nickname = nickname.as_ref().map_or_else(String::new, |nickname| format!("({nickname})"));
            tracing::info!(target: "weave_overlay", "to {}{nickname}, {moved}", moved.peer);
        }
        Notice::Topology(
            mesh @ (Mesh::NameCollision { .. } | Mesh::IdentityHeldTwice(_) | Mesh::Refused { .. }),
        ) => tracing::warn!(target: "weave_topology", "{mesh}"),
        Notice::Topology(
            mesh @ (Mesh::LinkUp { .. }
            | Mesh::LinkDown { .. }
            | Mesh::DialFailed { .. }
            | Mesh::Unresolved { .. }
            | Mesh::IdentityHeldOnce
            | Mesh::PeerDeparted { .. }),
        ) => tracing::info!(target: "weave_topology", "{mesh}"),
    }
}

/// Names the pods whose addresses now belong to another node.
pub(super) fn lost(allocations: &[weave_ipam::Allocation]) {
    // What the node's own address comes to, `weave status` says.
    for allocation in allocations.iter().filter(|allocation| !allocation.key.is_reserved()) {
        let pod = allocation.port.as_ref().and_then(|port| port.pod.as_deref()).unwrap_or("no pod known");
        tracing::error!(
            target: "weave_ipam",
            address = %allocation.address,
            attachment = %allocation.key,
            pod,
            "this peer was removed from the mesh and has lost an address that a container still holds: it is cut off; \
             restart the container to give it a new one"
        );
    }
}
