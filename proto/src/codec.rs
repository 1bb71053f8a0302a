//! How a message becomes a frame and back, with limits.
//!
//! ```text
//!    0               4       6                          6 + len
//!    +---------------+-------+---------------------------+
//!    | len, u32 BE   | kind, |  payload, len bytes       |   next frame …
//!    |               | u16 BE|  (bincode)                |
//!    +---------------+-------+---------------------------+
//! ```
//!
//! `len` counts the payload alone, so an empty payload has `len` 0 and takes six bytes. The payload is bincode 2
//! in its standard configuration: little endian, integers above one byte as varints, a sequence or string
//! preceded by its length as a varint, an enum by the index of its variant as a varint, an `Option` by one byte
//! 0 or 1, arrays and fields one after the other with nothing between. `docs/wire.md` spells out every message.
//!
//! bincode does not describe itself, so whatever changes must change in the frame: the **kind** says what the
//! payload is, and the **wire version** that both sides agreed on in their [`Hello`]s says which layout of that
//! kind. A kind that this program does not know is skipped, unread and unbuffered, and counted; that is how a
//! later version may say more without splitting the mesh. [`Hello`] and [`Refusal`] have one layout for ever,
//! because they are read before there is a version.
//!
//! Four rules keep a decoder safe, and each has a test that fails without it:
//!
//! 1. A frame above its kind's maximum is refused on sight of its header, before a byte of it is kept.
//! 2. A payload must be used up: bytes behind the message are an error, as are too few.
//! 3. A count inside a payload is never believed beyond the bytes that are there (bincode's limit and serde's
//!    cautious preallocation), and lists with a stated maximum are checked against it.
//! 4. The bytes of every kind and version are pinned by a golden file in `proto/golden/`.
//!
//! This is the only module that knows bincode (docs/adr/0003): a successor is a change of this one file.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::peer::ipam::{IpamPhase, MAX_RING_ENTRIES, MAX_VOTERS};
use crate::peer::topology::{MAX_LINKS, MAX_RECORDS};
use crate::peer::tunnel::{MAX_FLIGHT, MAX_ROUTED, MAX_SUITES};
use crate::peer::{
    Directed, Handshake, Hello, IpamDirected, IpamState, Message, PeerRecord, Refusal, SPOKEN, Step,
    WireVersion,
};

/// The bytes in front of a payload: length and kind.
pub const HEADER_LEN: usize = 6;

/// The longest payload of a kind that is not known here. It is never kept, so this only bounds for how long a
/// peer of a later version may keep the stream busy with things that we do not understand.
pub const MAX_UNKNOWN_PAYLOAD: usize = 4 * MIB;

/// The longest text of a [`Refusal`] in bytes: a paragraph, and it fits in the one packet that closes a QUIC
/// connection (1,200 bytes on any path).
pub const MAX_REFUSAL_TEXT: usize = 1000;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The largest payload of all kinds. bincode counts what it reads against it as well.
const MAX_PAYLOAD: usize = 4 * MIB + KIB;

/// A buffer that has grown beyond this for one large frame is given back when it is empty, so that two hundred
/// links that each carried the ring once do not keep two hundred copies of its size.
const KEPT_BUFFER: usize = 32 * KIB;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Message::Hello`].
    Hello,
    /// [`Message::Refusal`].
    Refusal,
    /// [`Message::Topology`].
    Topology,
    /// [`Message::Digest`].
    Digest,
    /// [`Message::Want`].
    Want,
    /// [`Message::Ipam`].
    Ipam,
    /// [`Message::Directed`].
    Directed,
    /// [`Message::Terms`].
    Terms,
    /// [`Message::Warning`].
    Warning,
    /// [`Message::Offer`].
    Offer,
    /// [`Message::Routed`].
    Routed,
    /// [`Message::Handshake`].
    Handshake,
}

impl Kind {
    /// Every kind, in the order of numbers.
    pub const ALL: [Self; 12] = [
        Self::Hello,
        Self::Refusal,
        Self::Topology,
        Self::Digest,
        Self::Want,
        Self::Ipam,
        Self::Directed,
        Self::Terms,
        Self::Warning,
        Self::Offer,
        Self::Routed,
        Self::Handshake,
    ];

    /// The number on the wire. Never reused, never changed.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Hello => 1,
            Self::Refusal => 2,
            Self::Topology => 3,
            Self::Digest => 4,
            Self::Want => 5,
            Self::Ipam => 6,
            Self::Directed => 7,
            Self::Terms => 8,
            Self::Warning => 9,
            Self::Offer => 10,
            Self::Routed => 11,
            Self::Handshake => 12,
        }
    }

    /// The kind with this number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The name in lower case: of its golden files, and for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Refusal => "refusal",
            Self::Topology => "topology",
            Self::Digest => "digest",
            Self::Want => "want",
            Self::Ipam => "ipam",
            Self::Directed => "directed",
            Self::Warning => "warning",
            Self::Terms => "terms",
            Self::Offer => "offer",
            Self::Routed => "routed",
            Self::Handshake => "handshake",
        }
    }

    /// The longest payload accepted, in bytes.
    ///
    /// * `hello`: fixed fields and a nickname of 253 bytes come to less than 400; doubled and rounded up.
    /// * `refusal`, `warning`: a code and [`MAX_REFUSAL_TEXT`].
    /// * `topology`: one record with all its 1,024 links takes up to 29 KiB; a sender splits what is larger.
    /// * `digest`: 26 bytes a peer, so room for far more peers than gossip of whole state can serve.
    /// * `want`: 6 bytes a peer, for as many peers as a digest can name.
    /// * `ipam`: the whole ring. An entry takes up to 40 bytes, so the most entries that there may be
    ///   ([`MAX_RING_ENTRIES`]) take 640 KiB; an election among a hundred candidates, each with its electorates,
    ///   takes about as much.
    /// * `directed`: a grant of space carries the giver's whole state, so as much as `ipam` and a little more.
    /// * `terms`, `offer`: a handful of small numbers.
    /// * `routed`: its body's most, and its names.
    /// * `handshake`: its flight's most, and a few small numbers.
    #[must_use]
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Hello => KIB,
            Self::Refusal | Self::Warning => MAX_REFUSAL_TEXT + 16,
            Self::Topology | Self::Digest => MIB,
            Self::Want => 256 * KIB,
            Self::Ipam => 4 * MIB,
            Self::Directed => MAX_PAYLOAD,
            Self::Terms | Self::Offer => 64,
            Self::Routed => MAX_ROUTED + 32,
            Self::Handshake => MAX_FLIGHT + 32,
        }
    }

    /// Whether the layout is the same in every version, so that the kind can be read before one is agreed on.
    #[must_use]
    pub const fn is_frozen(self) -> bool {
        match self {
            Self::Hello | Self::Refusal => true,
            Self::Topology
            | Self::Digest
            | Self::Want
            | Self::Ipam
            | Self::Directed
            | Self::Warning
            | Self::Terms
            | Self::Offer
            | Self::Routed
            | Self::Handshake => false,
        }
    }

    /// The kind of a message.
    #[must_use]
    pub const fn of(message: &Message) -> Self {
        match message {
            Message::Hello(_) => Self::Hello,
            Message::Refusal(_) => Self::Refusal,
            Message::Topology(_) => Self::Topology,
            Message::Digest(_) => Self::Digest,
            Message::Want(_) => Self::Want,
            Message::Ipam(_) => Self::Ipam,
            Message::Directed(_) => Self::Directed,
            Message::Warning(_) => Self::Warning,
            Message::Terms(_) => Self::Terms,
            Message::Offer(_) => Self::Offer,
            Message::Routed(_) => Self::Routed,
            Message::Handshake(_) => Self::Handshake,
        }
    }
}

/// Why a message has no frame. Each is a mistake on this side: what is sent must fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// No layout of this version is known.
    #[error("wire version {0} is not spoken here")]
    Version(u16),
    /// The message is longer than its kind allows.
    #[error("{kind} message of {len} bytes: at most {max} are allowed", kind = .kind.name(), max = .kind.max_payload())]
    TooLong {
        /// The message's kind.
        kind: Kind,
        /// The length it would have.
        len: usize,
    },
    /// The serializer refused.
    #[error("{kind} message cannot be encoded: {reason}", kind = .kind.name())]
    Unencodable {
        /// The message's kind.
        kind: Kind,
        /// What the serializer says.
        reason: String,
    },
}

/// Why bytes are no message. Each is a mistake on the other side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No layout of this version is known.
    #[error("wire version {0} is not spoken here")]
    Version(u16),
    /// The header announces more than the kind allows.
    #[error("frame of kind {kind} announces {len} bytes: at most {max} are allowed")]
    TooLong {
        /// The kind's number.
        kind: u16,
        /// The length announced.
        len: usize,
        /// The maximum of that kind.
        max: usize,
    },
    /// A message that needs an agreed version came before there was one.
    #[error("{} message before the hello", .0.name())]
    BeforeHello(Kind),
    /// The payload does not follow the kind's layout.
    #[error("malformed {kind} message: {reason}", kind = .kind.name())]
    Malformed {
        /// The message's kind.
        kind: Kind,
        /// What the deserializer says.
        reason: String,
    },
    /// Bytes that are to be one frame are less, or more.
    #[error("bytes that are not one frame")]
    NoFrame,
    /// There are bytes behind the message.
    #[error("{kind} message with {extra} bytes behind its end", kind = .kind.name())]
    TrailingBytes {
        /// The message's kind.
        kind: Kind,
        /// How many.
        extra: usize,
    },
    /// A list is longer than its stated maximum.
    #[error("{kind} message lists {count} {what}: at most {max} are allowed", kind = .kind.name())]
    TooMany {
        /// The message's kind.
        kind: Kind,
        /// What is listed.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// The highest version within both ranges (lowest, highest); none if they do not meet. Both sides come to the
/// same result.
#[must_use]
pub fn negotiate(
    ours: (WireVersion, WireVersion),
    theirs: (WireVersion, WireVersion),
) -> Option<WireVersion> {
    let (lowest, highest) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (lowest <= highest).then_some(highest)
}

/// The whole frame of `message` in the layout of `version`.
///
/// # Errors
/// The version is not spoken here, or the message is longer than its kind allows.
pub fn encode(message: &Message, version: WireVersion) -> Result<Vec<u8>, EncodeError> {
    let kind = Kind::of(message);
    if !kind.is_frozen() && !spoken(version) {
        return Err(EncodeError::Version(version.0));
    }
    let mut frame = vec![0; HEADER_LEN];
    match message {
        Message::Hello(hello) => append(&mut frame, kind, hello),
        Message::Refusal(refusal) => append(&mut frame, kind, &shortened(refusal)),
        Message::Topology(records) => append(&mut frame, kind, records),
        Message::Digest(digest) => append(&mut frame, kind, digest),
        Message::Want(names) => append(&mut frame, kind, names),
        Message::Ipam(state) => append(&mut frame, kind, &**state),
        Message::Directed(directed) => append(&mut frame, kind, directed),
        Message::Warning(warning) => append(&mut frame, kind, &shortened(warning)),
        Message::Terms(terms) => append(&mut frame, kind, terms),
        Message::Offer(offer) => append(&mut frame, kind, offer),
        Message::Routed(routed) => append(&mut frame, kind, routed),
        Message::Handshake(handshake) => append(&mut frame, kind, handshake),
    }?;
    let len = frame.len() - HEADER_LEN;
    let announced = u32::try_from(len).ok().filter(|_| len <= kind.max_payload());
    let announced = announced.ok_or(EncodeError::TooLong { kind, len })?;
    frame[..4].copy_from_slice(&announced.to_be_bytes());
    frame[4..HEADER_LEN].copy_from_slice(&kind.number().to_be_bytes());
    Ok(frame)
}

/// The message of which `payload` is the whole payload, in the layout of `version`.
///
/// # Errors
/// The payload is anything but one well-formed message of this kind and version within its limits.
pub fn decode(kind: Kind, version: WireVersion, payload: &[u8]) -> Result<Message, DecodeError> {
    if !kind.is_frozen() && !spoken(version) {
        return Err(DecodeError::Version(version.0));
    }
    if payload.len() > kind.max_payload() {
        let (len, max) = (payload.len(), kind.max_payload());
        return Err(DecodeError::TooLong { kind: kind.number(), len, max });
    }
    let message = match kind {
        Kind::Hello => Message::Hello(whole(kind, payload)?),
        Kind::Refusal => Message::Refusal(whole(kind, payload)?),
        Kind::Topology => Message::Topology(whole(kind, payload)?),
        Kind::Digest => Message::Digest(whole(kind, payload)?),
        Kind::Want => Message::Want(whole(kind, payload)?),
        Kind::Ipam => Message::Ipam(whole(kind, payload)?),
        Kind::Directed => Message::Directed(whole(kind, payload)?),
        Kind::Warning => Message::Warning(whole(kind, payload)?),
        Kind::Terms => Message::Terms(whole(kind, payload)?),
        Kind::Offer => Message::Offer(whole(kind, payload)?),
        Kind::Routed => Message::Routed(whole(kind, payload)?),
        Kind::Handshake => Message::Handshake(whole(kind, payload)?),
    };
    check_counts(&message)?;
    Ok(message)
}

/// The one message of which `frame` is the whole frame; none if it is of a kind that is not known here.
///
/// # Errors
/// The frame is anything but one well-formed message.
pub fn decode_frame(version: WireVersion, frame: &[u8]) -> Result<Option<Message>, DecodeError> {
    let Some((head, payload)) = frame.split_first_chunk::<HEADER_LEN>() else {
        return Err(DecodeError::NoFrame);
    };
    let [l0, l1, l2, l3, k0, k1] = *head;
    if usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])) != Ok(payload.len()) {
        return Err(DecodeError::NoFrame);
    }
    let kind = Kind::from_number(u16::from_be_bytes([k0, k1]));
    kind.map(|kind| decode(kind, version, payload)).transpose()
}

/// Cuts a stream of bytes into messages. It holds no socket: [`feed`](Self::feed) it what arrived, then call
/// [`poll`](Self::poll) until it has nothing more. After an error it is of no use: the stream has lost its step
/// and the connection is to be closed.
#[derive(Debug, Default)]
pub struct Framer {
    /// The version agreed on; none before the hello.
    version: Option<WireVersion>,
    /// Bytes not yet taken; the front is always the beginning of a frame, unless `skip` is positive.
    buffer: Vec<u8>,
    /// How many bytes at the front of `buffer` have been taken.
    taken: usize,
    /// How many bytes of an unknown frame are still to be thrown away.
    skip: usize,
    /// How many unknown frames were thrown away.
    skipped: u64,
}

impl Framer {
    /// A framer at the beginning of a stream: it accepts only a hello or a refusal until it is told the version
    /// with [`speak`](Self::speak).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From here on, messages are read in the layout of `version`.
    pub fn speak(&mut self, version: WireVersion) {
        self.version = Some(version);
    }

    /// How many frames of unknown kinds were skipped so far.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How many bytes are being kept.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.taken
    }

    /// Takes bytes as they came from the stream, in pieces of any size.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if self.buffered() == 0 {
            // Nothing is kept of a frame that is being skipped.
            let thrown = self.skip.min(bytes.len());
            self.skip -= thrown;
            bytes = &bytes[thrown..];
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or none until more bytes are fed.
    ///
    /// # Errors
    /// The bytes are no sequence of frames, or a frame is refused.
    pub fn poll(&mut self) -> Result<Option<Message>, DecodeError> {
        while let Some((len, number)) = self.header() {
            let Some(kind) = Kind::from_number(number) else {
                if len > MAX_UNKNOWN_PAYLOAD {
                    return Err(DecodeError::TooLong { kind: number, len, max: MAX_UNKNOWN_PAYLOAD });
                }
                self.skipped += 1;
                self.skip = HEADER_LEN + len;
                continue;
            };
            if len > kind.max_payload() {
                return Err(DecodeError::TooLong { kind: number, len, max: kind.max_payload() });
            }
            let version = match self.version {
                Some(version) => version,
                None if kind.is_frozen() => SPOKEN.1,
                None => return Err(DecodeError::BeforeHello(kind)),
            };
            let (from, to) = (self.taken + HEADER_LEN, self.taken + HEADER_LEN + len);
            let Some(payload) = self.buffer.get(from..to) else {
                return Ok(None);
            };
            let message = decode(kind, version, payload)?;
            self.take(HEADER_LEN + len);
            return Ok(Some(message));
        }
        Ok(None)
    }

    /// The length and kind of the frame at the front, once its header is there and nothing is to be skipped.
    fn header(&mut self) -> Option<(usize, u16)> {
        let thrown = self.skip.min(self.buffered());
        self.skip -= thrown;
        self.take(thrown);
        let header = self.buffer[self.taken..].first_chunk::<HEADER_LEN>()?;
        let [l0, l1, l2, l3, k0, k1] = *header;
        let len = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        Some((len, u16::from_be_bytes([k0, k1])))
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.buffered() == 0 {
            self.buffer.clear();
            self.taken = 0;
            if self.buffer.capacity() > KEPT_BUFFER {
                self.buffer = Vec::new();
            }
        }
    }
}

fn spoken(version: WireVersion) -> bool {
    SPOKEN.0 <= version && version <= SPOKEN.1
}

/// bincode's standard configuration, written out, with a limit on what a decoder reads. Part of the wire format:
/// a change here is a new wire version.
const fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_variable_int_encoding().with_limit::<MAX_PAYLOAD>()
}

fn append<T: Serialize>(frame: &mut Vec<u8>, kind: Kind, value: &T) -> Result<(), EncodeError> {
    match bincode::serde::encode_into_std_write(value, frame, config()) {
        Ok(_) => Ok(()),
        Err(error) => Err(EncodeError::Unencodable { kind, reason: error.to_string() }),
    }
}

fn whole<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = bincode::serde::decode_from_slice(payload, config())
        .map_err(|error| DecodeError::Malformed { kind, reason: error.to_string() })?;
    match payload.len() - used {
        0 => Ok(value),
        extra => Err(DecodeError::TrailingBytes { kind, extra }),
    }
}

/// The refusal with its text cut to [`MAX_REFUSAL_TEXT`] at a letter's edge: a reason that is too long must not
/// become a connection that cannot say why it closes.
fn shortened(refusal: &Refusal) -> Refusal {
    let fits = |&(at, letter): &(usize, char)| at + letter.len_utf8() <= MAX_REFUSAL_TEXT;
    let end =
        refusal.text.char_indices().take_while(fits).last().map_or(0, |(at, letter)| at + letter.len_utf8());
    Refusal { code: refusal.code, text: refusal.text[..end].to_owned() }
}

/// Holds the lists of a message against their stated maxima.
fn check_counts(message: &Message) -> Result<(), DecodeError> {
    match message {
        Message::Topology(records) => check_records(records),
        Message::Ipam(state) => check_state(Kind::Ipam, state),
        Message::Directed(Directed { body: IpamDirected::SpaceGranted { state, .. }, .. }) => {
            check_state(Kind::Directed, state)
        }
        Message::Offer(offer) => at_most(Kind::Offer, "suites", offer.suites.len(), MAX_SUITES),
        Message::Routed(routed) => at_most(Kind::Routed, "bytes of body", routed.body.len(), MAX_ROUTED),
        Message::Handshake(Handshake { step: Step::Flight { tls, .. }, .. }) => {
            at_most(Kind::Handshake, "bytes of TLS", tls.len(), MAX_FLIGHT)
        }
        Message::Handshake(_)
        | Message::Terms(_)
        | Message::Directed(_)
        | Message::Hello(_)
        | Message::Refusal(_)
        | Message::Warning(_)
        | Message::Digest(_)
        | Message::Want(_) => Ok(()),
    }
}

fn check_records(records: &[PeerRecord]) -> Result<(), DecodeError> {
    at_most(Kind::Topology, "records", records.len(), MAX_RECORDS)?;
    let links = records.iter().map(|record| record.links.len()).max().unwrap_or(0);
    at_most(Kind::Topology, "links of one peer", links, MAX_LINKS)
}

fn check_state(kind: Kind, state: &IpamState) -> Result<(), DecodeError> {
    match &state.phase {
        IpamPhase::Electing(candidacies) => at_most(kind, "candidacies", candidacies.len(), MAX_VOTERS),
        IpamPhase::Founded(founded) => {
            at_most(kind, "ring entries", founded.ring.len(), MAX_RING_ENTRIES)?;
            at_most(kind, "removals", founded.removals.len(), MAX_VOTERS)
        }
    }
}

const fn at_most(kind: Kind, what: &'static str, count: usize, max: usize) -> Result<(), DecodeError> {
    if count > max { Err(DecodeError::TooMany { kind, what, count, max }) } else { Ok(()) }
}

impl Hello {
    /// The range of versions that the sender speaks.
    #[must_use]
    pub const fn spoken(&self) -> (WireVersion, WireVersion) {
        (self.lowest, self.highest)
    }
}

#[cfg(test)]
mod tests;
