//! Frames that bring a record to its reader by way of another node.
//!
//! Two nodes that cannot reach each other send their records to a node that reaches both. The record stays what it
//! is, sealed from end to end with keys that the node in the middle does not have; in front of it stand twenty bytes
//! in clear that say where it is to go ([`Relay`]; `docs/wire-sleeve.md` draws them).
//!
//! * **A hop changes five bytes**: the hops left and the receiver index. So it forwards a whole run of datagrams where
//!   the kernel has put them, and sends them by one call.
//! * **The frame is not sealed for the hop.** It could protect nothing: what a stranger could change, his own end or
//!   the record's would drop. What keeps strangers from having their frames carried is the receiver index, a number
//!   that the hop has drawn at random and told the sender over the control connection alone, together with the
//!   address that the sender's authentic records come from.
//! * **Nothing runs in circles.** Hops are counted down, a frame never goes back to where it came from nor to the
//!   node that sealed its record, and a frame never carries another ([`Relay::parse`]).

use weave_proto::PeerName;

use crate::header::{Header, HeaderError, OVERHEAD, VERSION};

/// Bytes in front of the record.
pub const RELAY_LEN: usize = 20;

/// What a relayed record costs over what it carries.
pub const RELAYED_OVERHEAD: usize = RELAY_LEN + OVERHEAD;

/// Hops that a fresh frame may still take. Paths through a mesh are short; while its tables change they may form a
/// ring for a moment, in which a frame then goes round at most so often.
pub const MAX_HOPS: u8 = 8;

/// The kind in the low half of the first byte, beside those of [`crate::header::Kind`].
const KIND: u8 = 3;
const FIRST: u8 = VERSION << 4 | KIND;
const HOPS_OFFSET: usize = 1;
const RECEIVER_OFFSET: usize = 4;

/// What stands in front of a relayed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// How many nodes may still forward the frame.
    pub hops_left: u8,
    /// The queue of the record's sender, where a record has it too, so that a hop's kernel steers both alike.
    pub queue: u8,
    /// The session that the next node has with the node before it, by the next node's number.
    pub receiver: u32,
    /// Who can open the record.
    pub to: PeerName,
    /// Who sealed it.
    pub from: PeerName,
}

impl Relay {
    /// Whether the datagram says that it is a frame: to be asked before anything else about it.
    #[inline]
    #[must_use]
    pub const fn is_one(datagram: &[u8]) -> bool {
        matches!(datagram.first(), Some(&FIRST))
    }

    /// Reads a frame's header and looks at the record behind it.
    ///
    /// # Errors
    /// The bytes are too short, of a form that this version does not know, or carry no record.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, HeaderError> {
        let Some((head, record)) = frame.split_first_chunk::<RELAY_LEN>() else {
            return Err(HeaderError::Short);
        };
        let [first, hops_left, queue, reserved, r0, r1, r2, r3, to @ .., f0, f1, f2, f3, f4, f5] = *head;
        if first != FIRST {
            return Err(HeaderError::Version);
        }
        let (to_name, from_name) = (PeerName::from_bits(to), PeerName::from_bits([f0, f1, f2, f3, f4, f5]));
        let names = to_name.mac() == to && from_name.mac() == [f0, f1, f2, f3, f4, f5];
        if reserved != 0 || !names || Header::parse(record)?.queue != queue {
            return Err(HeaderError::Unknown);
        }
        let receiver = u32::from_be_bytes([r0, r1, r2, r3]);
        Ok(Self { hops_left, queue, receiver, to: to_name, from: from_name })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; RELAY_LEN] {
        let [r0, r1, r2, r3] = self.receiver.to_be_bytes();
        let [t0, t1, t2, t3, t4, t5] = self.to.mac();
        let [f0, f1, f2, f3, f4, f5] = self.from.mac();
        let Self { hops_left, queue, .. } = self;
        [FIRST, hops_left, queue, 0, r0, r1, r2, r3, t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5]
    }

    /// Whether `other` travels the same way: all but the queue is equal.
    #[inline]
    #[must_use]
    pub fn goes_with(&self, other: &Self) -> bool {
        Self { queue: 0, ..*self } == Self { queue: 0, ..*other }
    }

    /// Makes a frame that has parsed into what is sent on to the next node, which knows the session with this one by
    /// `receiver`.
    ///
    /// # Errors
    /// It has no hop left; the frame is as it was.
    #[inline]
    pub fn send_on(frame: &mut [u8], receiver: u32) -> Result<(), NoHopLeft> {
        let Some(head) = frame.first_chunk_mut::<RELAY_LEN>() else { return Err(NoHopLeft) };
        head[HOPS_OFFSET] = head[HOPS_OFFSET].checked_sub(1).ok_or(NoHopLeft)?;
        head[RECEIVER_OFFSET..RECEIVER_OFFSET + 4].copy_from_slice(&receiver.to_be_bytes());
        Ok(())
    }
}

/// The frame has been forwarded as often as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no hop left")]
pub struct NoHopLeft;

#[cfg(test)]
mod tests;
