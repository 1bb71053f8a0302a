//! QUIC connections that carry records: what [`super::beside`] wants done, done.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio::sync::mpsc;
use weave_proto::PeerName;

use super::Driver;
use super::beside::Act;
use crate::dataplane::sleeve::QuicLink;
use crate::peer::{DataDoor, DataEvent};
use crate::task::Task;

/// Where such connections are made, and where they come from.
pub struct QuicDoor {
    /// Makes them.
    pub door: DataDoor,
    /// They, and why there are none.
    pub events: mpsc::UnboundedReceiver<DataEvent>,
}

/// One of them. It ends by being dropped.
pub(super) struct Carried {
    pub(super) link: QuicLink,
    _reading: Task,
}

impl Driver {
    /// A connection is there, or could not be had; none if there will be no more.
    pub(super) fn on_data(&mut self, event: Option<DataEvent>) {
        let now = Instant::now();
        match event {
            Some(DataEvent::Up { peer, dialled, connection }) => {
                let carried =
                    self.tunnel.as_ref().ok().and_then(|tunnel| tunnel.engine.carry(peer, connection));
                match carried {
                    Some((link, reading)) => {
                        tracing::info!(%peer, dialled, "A QUIC connection for packets is up");
                        self.beside.opened(peer, dialled, Carried { link, _reading: reading }, now);
                    }
                    None => self.beside.failed(peer, "nothing here carries sealed records".to_owned(), now),
                }
            }
            Some(DataEvent::Failed { peer, reason }) => {
                tracing::info!(%peer, why = reason.text, "No QUIC connection for packets could be made");
                self.beside.failed(peer, reason.text, now);
            }
            None => self.quic = None,
        }
        self.attend_quic(now);
        self.settle();
    }

    /// A connection has ended by itself.
    pub(super) fn on_quic_lost(&mut self, lost: &QuicLink, why: &str) {
        tracing::info!(peer = %lost.peer(), why, "A QUIC connection for packets is gone");
        let now = Instant::now();
        self.beside.lost(|carried| carried.link == *lost, why, now);
        self.attend_quic(now);
        self.settle();
    }

    /// Takes from the table with whom a connection is wanted.
    pub(super) fn want_quic(&mut self, now: Instant) {
        let wanted: BTreeMap<PeerName, bool> =
            self.table.quic.iter().map(|wanted| (wanted.peer, wanted.soon)).collect();
        self.beside.want(&wanted, now);
        self.attend_quic(now);
    }

    /// Dials and closes what is due.
    pub(super) fn attend_quic(&mut self, now: Instant) {
        let Some(QuicDoor { door, .. }) = self.quic.as_ref().filter(|_| self.tunnel.is_ok()) else { return };
        for act in self.beside.acts(now) {
            match act {
                Act::Dial(addr, key) => door.open(addr, key),
                Act::Close(carried, why) => {
                    tracing::info!(peer = %carried.link.peer(), why, "A QUIC connection for packets is closed");
                    carried.link.close(why);
                }
            }
        }
    }

    /// The connection to send to a peer by.
    pub(super) fn quic_to(&self, peer: PeerName) -> Option<&QuicLink> {
        self.beside.to(peer).map(|carried| &carried.link)
    }
}
