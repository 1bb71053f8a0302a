//! Which counters have been seen: the sliding window of RFC 6479.
//!
//! A ring of 64-bit words, one bit a counter. Moving on clears whole words and never shifts, so that a record
//! costs one load, one test and one store. The window is asked before a record is opened ([`ReplayWindow::is_fresh`],
//! which saves the work for a replayed one) and marked only after it has proved authentic: otherwise a forged
//! counter could push the window past everything that is under way.

/// Words of the ring: a power of two.
const WORDS: usize = 256;
const WORD_BITS: u64 = 64;

/// How far behind the newest counter a record may come and still be taken. One word less than the ring, because
/// the newest word is only partly in use. At 10 Gb/s of 1400-byte records this is 18 ms of reordering.
pub const REPLAY_WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// The window of one (session, queue, epoch).
pub struct ReplayWindow {
    words: [u64; WORDS],
    /// One more than the highest counter seen; zero before the first.
    next: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { words: [0; WORDS], next: 0 }
    }
}

impl ReplayWindow {
    /// Whether a record with this counter could be taken: it is neither seen nor too old.
    #[inline]
    #[must_use]
    pub const fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - 1 - counter < REPLAY_WINDOW && self.words[word(counter)] & bit(counter) == 0
    }

    /// Takes the counter of an authentic record.
    ///
    /// # Errors
    /// It was seen before or is too old; nothing is changed.
    #[inline]
    pub fn take(&mut self, counter: u64) -> Result<(), Replayed> {
        if !self.is_fresh(counter) {
            return Err(Replayed);
        }
        if counter >= self.next {
            self.advance_to(counter);
        }
        self.words[word(counter)] |= bit(counter);
        Ok(())
    }

    /// One more than the highest counter taken.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    fn advance_to(&mut self, counter: u64) {
        let newest_block = if self.next == 0 { 0 } else { (self.next - 1) / WORD_BITS };
        let blocks_on = counter / WORD_BITS - newest_block;
        for block in 1..=blocks_on.min(WORDS as u64) {
            self.words[word((newest_block + block) * WORD_BITS)] = 0;
        }
        self.next = counter + 1;
    }
}

/// The counter was seen before or is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("replayed or too old")]
pub struct Replayed;

const fn word(counter: u64) -> usize {
    ((counter / WORD_BITS) % WORDS as u64) as usize
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests;
