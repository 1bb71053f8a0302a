//! The sixteen bytes in front of every record, in clear but authenticated.

/// Bytes of the header.
pub const HEADER_LEN: usize = 16;

/// Bytes of the authentication tag behind the sealed part. The same for every suite.
pub const TAG_LEN: usize = 16;

/// What a record costs over what it carries.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// Where the queue byte stands, for a steering program in the receiver's kernel.
pub const QUEUE_OFFSET: usize = 2;

/// The wire version this code speaks. It is the high half of the first byte; zero is never sent, so that a
/// stray QUIC or VXLAN packet is refused by its first byte.
pub(crate) const VERSION: u8 = 1;

/// The highest counter a header can hold. Keys are replaced long before.
pub const MAX_COUNTER: u64 = (1 << 56) - 1;

/// What the sealed part of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One inner packet, whole or a piece of a super-packet.
    Packet = 0,
    /// Several small inner packets, each behind a two-byte chunk header.
    Bundle = 1,
    /// A probe of the path, meaningful to the agent and not to this crate. Any length.
    Probe = 2,
}

/// Remarks on a [`Kind::Packet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    /// No remark.
    pub const NONE: Self = Self(0);
    /// This piece continues the packet of the record with the counter before.
    pub const CONTINUES: Self = Self(1);
    /// The record with the next counter continues this one.
    pub const MORE: Self = Self(2);
    /// Lengths, the IPv4 header checksum and the transport checksum are for the receiving end to fill in.
    pub const PARTIAL: Self = Self(4);

    const KNOWN: u8 = 7;

    /// Both sets of remarks.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These remarks if `condition`, else none.
    #[must_use]
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the sealed part is.
    pub kind: Kind,
    /// Remarks on it.
    pub flags: Flags,
    /// The sender's queue: one counter and one key each.
    pub queue: u8,
    /// The low byte of the epoch whose key sealed the record.
    pub epoch: u8,
    /// The session, by the number that the receiver gave it.
    pub receiver: u32,
    /// The low byte of the newest epoch that the sender of this record has opened records of.
    pub confirmed: u8,
    /// The record's number within (session, direction, queue, epoch). At most [`MAX_COUNTER`].
    pub counter: u64,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header and a tag.
    #[error("shorter than a header and a tag")]
    Short,
    /// Another version, or no record at all.
    #[error("unknown version")]
    Version,
    /// A kind or a remark that this version does not know.
    #[error("unknown kind or flag")]
    Unknown,
}

impl Header {
    /// Reads the header of `record`, which must have room for a tag behind it.
    ///
    /// # Errors
    /// The bytes are too short or of a form that this version does not know.
    #[inline]
    pub fn parse(record: &[u8]) -> Result<Self, HeaderError> {
        if record.len() < OVERHEAD {
            return Err(HeaderError::Short);
        }
        let Some((head, _)) = record.split_first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short);
        };
        let [first, flags, queue, epoch, r0, r1, r2, r3, confirmed, c0, c1, c2, c3, c4, c5, c6] = *head;
        if first >> 4 != VERSION {
            return Err(HeaderError::Version);
        }
        let kind = match first & 0x0f {
            0 => Kind::Packet,
            1 => Kind::Bundle,
            2 => Kind::Probe,
            _ => return Err(HeaderError::Unknown),
        };
        if flags & !Flags::KNOWN != 0 {
            return Err(HeaderError::Unknown);
        }
        Ok(Self {
            kind,
            flags: Flags(flags),
            queue,
            epoch,
            receiver: u32::from_be_bytes([r0, r1, r2, r3]),
            confirmed,
            counter: u64::from_be_bytes([0, c0, c1, c2, c3, c4, c5, c6]),
        })
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [r0, r1, r2, r3] = self.receiver.to_be_bytes();
        let [_, c0, c1, c2, c3, c4, c5, c6] = self.counter.to_be_bytes();
        let first = VERSION << 4 | self.kind as u8;
        let Flags(flags) = self.flags;
        [first, flags, self.queue, self.epoch, r0, r1, r2, r3, self.confirmed, c0, c1, c2, c3, c4, c5, c6]
    }
}

#[cfg(test)]
mod tests;
