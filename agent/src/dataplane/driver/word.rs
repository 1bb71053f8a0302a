//! What a probe says, the same on every way.
//!
//! ```text
//!   0       1       2               4                              12              16
//!   +-------+-------+---------------+------------------------------+---------------+----------
//!   |version| kind  |haste  | zero  |  nonce, 64 bits              | length, 32    | padding …
//!   +-------+-------+---------------+------------------------------+---------------+----------
//! ```
//!
//! A *probe* asks for an *answer* with its nonce and length, and is padded to be as long on its way as a pod's packet of
//! that length. The answer is not padded. A *greeting* asks for nothing: it only shows that the keys of a new session
//! are there. A probe *in haste*, which has a 1 there, says that packets of pods may be lost on their way to whom it asks.

/// The version of this layout.
const VERSION: u8 = 1;

/// Bytes of a word without padding.
pub(super) const WORD_LEN: usize = 16;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Answer this.
    Probe = 1,
    /// Here is the answer.
    Answer = 2,
    /// I am here.
    Greeting = 3,
}

/// A probe, an answer or a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: Kind,
    /// Whether the sender fears for packets of its pods to the other end's.
    pub(super) hasty: bool,
    pub(super) nonce: u64,
    /// The pod packet that the probe stands for, in bytes.
    pub(super) len: u32,
}

impl Word {
    pub(super) fn to_bytes(self) -> [u8; WORD_LEN] {
        let mut bytes = [0; WORD_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.kind as u8;
        bytes[2] = self.hasty.into();
        bytes[4..12].copy_from_slice(&self.nonce.to_be_bytes());
        bytes[12..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// The word at the front of `bytes`; none if there is none of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let word: &[u8; WORD_LEN] = bytes.first_chunk()?;
        let kind = match (word[0], word[1]) {
            (VERSION, 1) => Kind::Probe,
            (VERSION, 2) => Kind::Answer,
            (VERSION, 3) => Kind::Greeting,
            _ => return None,
        };
        let nonce = u64::from_be_bytes(*word[4..].first_chunk()?);
        let len = u32::from_be_bytes(*word[12..].first_chunk()?);
        Some(Self { kind, hasty: word[2] == 1, nonce, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_was_written_and_nothing_else_is_one() {
        for (kind, hasty) in
            [(Kind::Probe, false), (Kind::Probe, true), (Kind::Answer, false), (Kind::Greeting, false)]
        {
            let word = Word { kind, hasty, nonce: 0x0102_0304_0506_0708, len: 1440 };
            let mut bytes = word.to_bytes().to_vec();
            bytes.extend([0xaa; 100]);
            assert_eq!(Word::parse(&bytes), Some(word));
            assert_eq!(Word::parse(&bytes[..WORD_LEN - 1]), None);
            bytes[0] = 2;
            assert_eq!(Word::parse(&bytes), None);
        }
        assert_eq!(Word::parse(&[VERSION, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
