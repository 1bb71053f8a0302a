//! The cluster secret: what a peer must know to be let in.
//!
//! ```text
//!   secret --Argon2id--> 32 bytes --Ed25519--> key of a certificate authority --> its certificate
//!                                                        |
//!                              this peer's own key --signed by it--> this peer's certificate
//! ```
//!
//! Everybody who knows the secret grows the same authority from it, certifies itself, and trusts what that
//! authority has signed. Nothing is sent, nothing is shared out, and the proof of possession is ordinary mutual
//! TLS (docs/adr/0002). The first of several secrets signs; all of them are trusted. So a secret is changed
//! without an outage in three rounds over all nodes: `old, new`, then `new, old`, then `new`.
//!
//! **What a stranger can do.** Whoever can reach the UDP port is shown a certificate that the authority signed,
//! and can try secrets against the signature offline. Argon2id makes each try cost about 50 ms and 19 MiB, which
//! protects a random secret a thousand times over and a guessable one not at all; hence the warning for those.
//! **What a member can do.** Whoever holds the secret can pose as any peer.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Block, Params, Version};

/// The salt. It must be the same on every node that knows the secret, before they have ever met, so it cannot be
/// random; it separates this use of a secret from every other. Changing it changes every cluster's authority.
const SALT: &[u8] = b"weave cluster secret, version 1";

/// Argon2id's cost, the first of the choices that OWASP's password storage sheet gives: 19 MiB, two passes, one
/// lane. About 50 ms on a server's core. Fixed for ever, as the salt is.
const ARGON2_MEMORY_KIB: u32 = 19 * 1024;
const ARGON2_PASSES: u32 = 2;
const ARGON2_LANES: u32 = 1;

/// Blocks of 1 KiB reserved for stretching, more than are used. glibc keeps freed memory for later unless it came
/// from the kernel as one piece, and after one large piece was freed it expects more of that size and stops asking
/// the kernel for them; only pieces above 32 MiB are exempt (mallopt(3), M_MMAP_THRESHOLD). The part that is never
/// touched takes no memory, and all of it is given back, so stretching leaves no 19 MiB behind in a small agent.
const RESERVED_BLOCKS: usize = 33 * 1024;

/// A rotation needs two at a time; more than a few is a mistake, and each costs 50 ms at every start.
const MAX_SECRETS: usize = 8;
/// Longer ones are a wrong file. A secret of a hundred letters is beyond guessing.
const MAX_SECRET_LEN: usize = 1024;
/// Below this many bits a secret is in reach of someone who tries offline: at 50 ms a try on one core, 2^64 tries
/// take ten thousand cores three million years, while 2^40 take them two months.
const STRONG_BITS: f64 = 64.0;
/// Fewer different letters than this are a pattern, however long: random text of sixteen hexadecimal digits has
/// more than nine out of ten times.
const MIN_DISTINCT: usize = 8;
/// The secret of a mesh that has none, so that two commands are enough to try weave. Everybody knows it.
const PUBLIC_SECRET: &str = "weave public secret: anyone may join this mesh";

/// Why there are no usable secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file holds no secret.
    #[error(
        "{origin} holds no secret: write one to a line, for example the output of `openssl rand -base64 32`"
    )]
    Empty {
        /// Where the secrets come from.
        origin: String,
    },
    /// There are more than make sense.
    #[error(
        "{origin} holds {count} secrets, at most {MAX_SECRETS} are allowed: remove those no longer in use"
    )]
    TooMany {
        /// Where the secrets come from.
        origin: String,
        /// How many there are.
        count: usize,
    },
    /// One is too long to be a secret.
    #[error(
        "line {line} of {origin} has {len} bytes, at most {MAX_SECRET_LEN} are allowed: is it the right file?"
    )]
    TooLong {
        /// Where the secrets come from.
        origin: String,
        /// The line, counted from one.
        line: usize,
        /// Its length in bytes.
        len: usize,
    },
}

/// One or more secrets in the order of preference. Never printed, not even with `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    texts: Vec<String>,
    origin: String,
    public: bool,
}

impl Secrets {
    /// The secrets in a file: one a line, the one to sign with first; empty lines and lines that start with `#`
    /// are passed over, blanks around a secret are not part of it.
    ///
    /// # Errors
    /// The file cannot be read or holds no usable secret; the message names it.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SecretError::Unreadable { path: path.to_owned(), error })?;
        Self::from_lines(&text, &format!("the secret file {}", path.display()))
    }

    /// The secrets in a text of the same form, from anywhere; `origin` says where in errors and warnings.
    ///
    /// # Errors
    /// There is no usable secret in it.
    pub fn from_lines(text: &str, origin: &str) -> Result<Self, SecretError> {
        let mut texts: Vec<String> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || texts.iter().any(|known| known == line) {
                continue;
            }
            if line.len() > MAX_SECRET_LEN {
                return Err(SecretError::TooLong {
                    origin: origin.to_owned(),
                    line: index + 1,
                    len: line.len(),
                });
            }
            texts.push(line.to_owned());
        }
        match texts.len() {
            0 => Err(SecretError::Empty { origin: origin.to_owned() }),
            count if count > MAX_SECRETS => Err(SecretError::TooMany { origin: origin.to_owned(), count }),
            _ => Ok(Self { texts, origin: origin.to_owned(), public: false }),
        }
    }

    /// The secret of a mesh that was given none.
    #[must_use]
    pub fn public() -> Self {
        Self { texts: vec![PUBLIC_SECRET.to_owned()], origin: "no secret".to_owned(), public: true }
    }

    /// Whether this is the secret that everybody knows.
    #[must_use]
    pub const fn is_public(&self) -> bool {
        self.public
    }

    /// What an operator should be warned of, a sentence each, without the secrets themselves.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if self.public {
            return vec![
                "no cluster secret is set: anyone who reaches this port can join the mesh; write one to a file, \
                 the same on every node, and pass --secret-file"
                    .to_owned(),
            ];
        }
        let weak = |(index, text): (usize, &String)| {
            weakness(text).map(|why| {
                format!(
                    "secret {number} of {origin} {why}: whoever reaches this port can find it out by trying; \
                     use the output of `openssl rand -base64 32`",
                    number = index + 1,
                    origin = self.origin,
                )
            })
        };
        self.texts.iter().enumerate().filter_map(weak).collect()
    }

    /// The seed of each secret's authority, in order. Takes about 50 ms each: not for a thread that others wait
    /// for. One block of memory serves them all and is given back at the end.
    pub(super) fn stretch(&self) -> Result<Vec<[u8; 32]>, argon2::Error> {
        let params = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, Some(32))?;
        let mut memory = Vec::with_capacity(RESERVED_BLOCKS.max(params.block_count()));
        memory.resize(params.block_count(), Block::default());
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut stretch_one = |text: &String| {
            let mut seed = [0; 32];
            argon2.hash_password_into_with_memory(text.as_bytes(), SALT, &mut seed, &mut memory)?;
            Ok(seed)
        };
        self.texts.iter().map(&mut stretch_one).collect()
    }
}

/// Says how many there are and where they come from, and nothing else.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret(s) of {}", self.texts.len(), self.origin)
    }
}

/// Why a secret is easy to guess, as the end of the sentence "secret 1 …"; none if it is not, as far as one can
/// tell from its letters. A random choice from the classes of letters that it uses must have [`STRONG_BITS`],
/// where a run of small or of capital letters counts as the words that it may well be.
fn weakness(secret: &str) -> Option<String> {
    const FAVOURITES: [&str; 8] =
        ["password", "passwort", "weave", "secret", "qwerty", "letmein", "changeme", "12345"];
    let lower = secret.to_lowercase();
    let distinct = secret.chars().collect::<BTreeSet<_>>().len();
    let bits = bits(secret);
    if bits < STRONG_BITS && FAVOURITES.iter().any(|word| lower.contains(word)) {
        Some("is built on a word that is tried first".to_owned())
    } else if bits < STRONG_BITS {
        Some(format!("is easy to guess (it may hold as little as {bits:.0} bits; {STRONG_BITS} are needed)"))
    } else if distinct < MIN_DISTINCT {
        Some(match distinct {
            1 => "is one letter over and over".to_owned(),
            distinct => format!("is made of {distinct} letters only"),
        })
    } else {
        None
    }
}

/// A low estimate of how many bits somebody must guess who knows how the secret was made.
fn bits(secret: &str) -> f64 {
    /// A word of a dictionary of 65,536, in letters: longer runs are several.
    const WORD: (f64, f64) = (16.0, 8.0);
    /// Shorter runs happen by chance.
    const SHORTEST_WORD: usize = 4;
    let class = |letter: char| match letter {
        'a'..='z' => (26_u32, true),
        'A'..='Z' => (26, true),
        '0'..='9' => (10, false),
        _ => (33, false),
    };
    let classes = ['a'..='z', 'A'..='Z', '0'..='9'];
    let others = |letter: &char| !classes.iter().any(|class| class.contains(letter));
    let alphabet: u32 = classes
        .iter()
        .filter_map(|range| secret.chars().find(|letter| range.contains(letter)))
        .chain(secret.chars().find(others))
        .map(|letter| class(letter).0)
        .sum();
    let each = f64::from(alphabet.max(2)).log2();

    let letters: Vec<char> = secret.chars().collect();
    let runs = letters.chunk_by(|one, next| {
        class(*one).1 && one.is_ascii_lowercase() == next.is_ascii_lowercase() && next.is_ascii_alphabetic()
    });
    let worth = |run: &[char]| {
        #[expect(clippy::cast_precision_loss, reason = "at most a thousand letters")]
        let len = run.len() as f64;
        if run.len() < SHORTEST_WORD { len * each } else { ((len / WORD.1).ceil() * WORD.0).min(len * each) }
    };
    runs.map(worth).sum()
}

#[cfg(test)]
mod tests;
