//! One sender's or one receiver's side of a (session, direction, queue, epoch).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::header::{Flags, HEADER_LEN, Header, Kind, OVERHEAD};
use crate::keys::QueueKey;

/// Seals the records of one queue. Usually one thread uses a lane; if several do, the counter still never repeats.
pub struct SealLane {
    key: QueueKey,
    receiver: u32,
    queue: u8,
    epoch: u8,
    next: AtomicU64,
    end: u64,
}

/// The lane has sealed as many records as its key may. A new epoch is overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key is used up and the next one is not confirmed")]
pub struct Exhausted;

impl SealLane {
    pub(crate) const fn new(key: QueueKey, receiver: u32, queue: u8, epoch: u8, end: u64) -> Self {
        Self { key, receiver, queue, epoch, next: AtomicU64::new(0), end }
    }

    /// Takes `count` consecutive counters and returns the first.
    ///
    /// # Errors
    /// So many are not left. Some may be lost by asking, none is ever given twice.
    #[inline]
    pub fn reserve(&self, count: usize) -> Result<u64, Exhausted> {
        let count = count as u64;
        // Asked before adding, so that no number of refused calls can make the counter wrap around.
        if self.next.load(Ordering::Relaxed) >= self.end {
            return Err(Exhausted);
        }
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        if first + count <= self.end { Ok(first) } else { Err(Exhausted) }
    }

    /// How many counters have been taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Seals `plain` into `record`, which must be longer by [`OVERHEAD`], under a counter that
    /// was reserved for it.
    #[inline]
    pub fn seal(&self, mark: Mark, plain: &[u8], record: &mut [u8]) {
        let Mark { counter, kind, flags, confirmed } = mark;
        let header = Header {
            kind,
            flags,
            queue: self.queue,
            epoch: self.epoch,
            receiver: self.receiver,
            confirmed,
            counter,
        };
        let bytes = header.to_bytes();
        record[..HEADER_LEN].copy_from_slice(&bytes);
        self.key.seal(counter, &bytes, plain, &mut record[HEADER_LEN..plain.len() + OVERHEAD]);
    }
}

/// What differs from record to record in a header.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// A number from [`SealLane::reserve`], used once.
    pub counter: u64,
    /// What the sealed part is.
    pub kind: Kind,
    /// Remarks on it.
    pub flags: Flags,
    /// The low byte of the newest epoch opened in the other direction.
    pub confirmed: u8,
}
