//! May these two peers talk?
//!
//! Both ends ask this question about the same two hellos and must come to the same answer without another word, because
//! each closes the connection on its own. So [`agree`] is symmetric: exchanging its two ends changes neither the verdict
//! nor a letter of the text, which names both sides' values in an order that both sides know and therefore reads right
//! on both.
//!
//! The checks have a fixed order, from what makes all else meaningless to what an operator may want to change: a peer
//! that reached itself, two peers with one name or one identity, no common version, another range, another first split,
//! another number of founders. One exception to the symmetry is inherent: only the end that has heard of a name's other
//! holder can object to it.

use std::fmt;

use weave_proto::PeerKey;
use weave_proto::peer::{Hello, Refusal, RefusalCode, WireVersion};

/// One end of a connection: what it says and the key that it has proven to hold.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// What it says.
    pub hello: &'a Hello,
    /// The proven key.
    pub key: PeerKey,
}

/// The version that two peers speak with each other, or why they do not. `known` is the key that this peer knows the
/// other end's name with, if it knows the name.
///
/// # Errors
/// The refusal to close the connection with.
pub fn agree(mine: End<'_>, theirs: End<'_>, known: Option<PeerKey>) -> Result<WireVersion, Refusal> {
    check_identity(mine, theirs, known)?;
    let version = common_version(mine, theirs)?;
    check_range(mine, theirs)?;
    check_universe(mine, theirs)?;
    check_founders(mine, theirs)?;
    Ok(version)
}

/// The refusal of the younger of two connections of one identity that cannot both be the same running agent.
pub(crate) fn held_twice(one: End<'_>, other: End<'_>) -> Refusal {
    let (one, other) = in_order(one, other);
    refusal(
        RefusalCode::NameCollision,
        format!(
            "two running agents hold one identity: {} and {}, both with key {}; stop one of the two, remove its data \
             directory and start it again, so that it gets an identity of its own",
            Running(one),
            Running(other),
            one.key
        ),
    )
}

fn check_identity(mine: End<'_>, theirs: End<'_>, known: Option<PeerKey>) -> Result<(), Refusal> {
    if mine.key == theirs.key {
        return Err(if mine.hello.instance == theirs.hello.instance {
            refusal(
                RefusalCode::Myself,
                format!("peer {} has reached itself: remove its own address from its targets", Named(mine)),
            )
        } else {
            held_twice(mine, theirs)
        });
    }
    if mine.hello.name == theirs.hello.name {
        let (one, other) = in_order(mine, theirs);
        return Err(refusal(
            RefusalCode::NameCollision,
            format!(
                "two peers have one name: {} with key {} and {} with key {}; stop one of the two, remove its data \
                 directory and start it again, so that it gets another name",
                Named(one),
                one.key,
                Named(other),
                other.key
            ),
        ));
    }
    match known {
        Some(known) if known != theirs.key => Err(refusal(
            RefusalCode::NameCollision,
            format!(
                "the name {} is known to belong to a peer with key {known}, not to the one with key {}; stop one of \
                 the two, remove its data directory and start it again, so that it gets another name",
                Named(theirs),
                theirs.key
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

fn common_version(mine: End<'_>, theirs: End<'_>) -> Result<WireVersion, Refusal> {
    let lowest = mine.hello.lowest.max(theirs.hello.lowest);
    let highest = mine.hello.highest.min(theirs.hello.highest);
    let proper = |end: End<'_>| end.hello.lowest <= end.hello.highest;
    if lowest <= highest && proper(mine) && proper(theirs) {
        return Ok(highest);
    }
    let (one, other) = in_order(mine, theirs);
    Err(refusal(
        RefusalCode::Version,
        format!(
            "no common wire version: {} speaks {}, {} speaks {}; upgrade the older one, one release at a time",
            Named(one),
            Spoken(one.hello),
            Named(other),
            Spoken(other.hello)
        ),
    ))
}

fn check_range(mine: End<'_>, theirs: End<'_>) -> Result<(), Refusal> {
    let (one, other) = in_order(mine, theirs);
    match (one.hello.range, other.hello.range) {
        (Some(first), Some(second)) if first != second => Err(refusal(
            RefusalCode::Range,
            format!(
                "the address ranges differ: {} shares out {}, {} shares out {}; start all peers with the same \
                 --ipalloc-range",
                Named(one),
                first,
                Named(other),
                second
            ),
        )),
        (Some(_) | None, _) => Ok(()),
    }
}

fn check_universe(mine: End<'_>, theirs: End<'_>) -> Result<(), Refusal> {
    let (one, other) = in_order(mine, theirs);
    match (one.hello.universe, other.hello.universe) {
        (Some(first), Some(second)) if first != second => Err(refusal(
            RefusalCode::Universe,
            format!(
                "the address range was split twice, independently: {} takes part in split {:016x}, {} in split \
                 {:016x}, so the same addresses are in use on both sides; keep the side with more pods, and on every \
                 peer of the other side run `weave reset --force`, then `weave launch` with a peer of the side that \
                 stays",
                Named(one),
                first.0,
                Named(other),
                second.0
            ),
        )),
        (Some(_) | None, _) => Ok(()),
    }
}

fn check_founders(mine: End<'_>, theirs: End<'_>) -> Result<(), Refusal> {
    let (one, other) = in_order(mine, theirs);
    if one.hello.universe.is_some() || other.hello.universe.is_some() {
        return Ok(());
    }
    match (one.hello.founders, other.hello.founders) {
        (Some(first), Some(second)) if first != second => Err(refusal(
            RefusalCode::Electorate,
            format!(
                "the numbers of founders differ: {} waits for {first}, {} waits for {second}; start all peers with \
                 the same --ipalloc-init consensus=N",
                Named(one),
                Named(other)
            ),
        )),
        (Some(_) | None, _) => Ok(()),
    }
}

/// The two ends in the order that both know: by name, then by key, then by instance.
fn in_order<'a>(one: End<'a>, other: End<'a>) -> (End<'a>, End<'a>) {
    let rank = |end: End<'_>| (end.hello.name, end.key, end.hello.instance);
    if rank(one) <= rank(other) { (one, other) } else { (other, one) }
}

const fn refusal(code: RefusalCode, text: String) -> Refusal {
    Refusal { code, text }
}

/// `7a:3f:00:00:00:01(host)`, as Weave has always written it.
struct Named<'a>(End<'a>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.0.hello.name, self.0.hello.nickname)
    }
}

/// One of several running agents that have everything else in common.
struct Running<'a>(End<'a>);

impl fmt::Display for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hello = self.0.hello;
        write!(f, "{} (start {}, instance {:016x})", Named(self.0), hello.uid, hello.instance)
    }
}

struct Spoken<'a>(&'a Hello);

impl fmt::Display for Spoken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.lowest == self.0.highest {
            write!(f, "{}", self.0.lowest.0)
        } else {
            write!(f, "{} to {}", self.0.lowest.0, self.0.highest.0)
        }
    }
}

#[cfg(test)]
mod tests;
