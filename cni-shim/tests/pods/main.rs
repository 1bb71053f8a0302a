//! Real pods on a real bridge: the real shim, the agent's real server, the kernel. Root needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must fail")]

mod add;
mod del;
mod raw;
mod socket;
#[path = "../support/mod.rs"]
mod support;
mod upkeep;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::lab::{BRIDGE_MAC, GATEWAY, Netns, Node, reaches, sh};
use support::{Ran, VERSIONS, eventually, is_root};
use weave_agent::cni::Paths;
use weave_agent::cni::conflist::{self, Conflist};
use weave_agent::cni::server::Asker;
use weave_proto::local::cni::{AttachmentKey, Del, HOST_INTERFACE_PREFIX, Moment, Tombstone};

fn key(id: &str) -> AttachmentKey {
    AttachmentKey { container: id.to_owned(), interface: "eth0".to_owned() }
}

fn with(mut conf: Value, name: &str, value: &Value) -> Value {
    conf[name] = value.clone();
    conf
}

#[track_caller]
fn assert_error(ran: &Ran, code: u64, text: &str) {
    let (is, msg) = ran.error();
    assert!(is == code && msg.contains(text), "wanted {code} with {text:?}: {ran:?}");
}

/// Runs the room's own calls where its server runs.
fn in_room<T: Send>(node: &Node, work: impl AsyncFnOnce() -> T + Send) -> T {
    node.host.inside(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
    })
}

fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap();
    Moment { boot: boot_id(), nanoseconds: seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap() }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

fn bury(node: &Node, id: &str, begun: Moment) {
    let del = Del { key: key(id), network: "weave".to_owned(), begun };
    let tombstone = Tombstone { del, host_interface: None, ipam_only: false };
    let (beside, place) = (node.folder.join("cni/del/.new"), Tombstone::file_name(&key(id)));
    std::fs::write(&beside, serde_json::to_vec(&tombstone).unwrap()).unwrap();
    std::fs::rename(&beside, node.folder.join("cni/del").join(place)).unwrap();
}
