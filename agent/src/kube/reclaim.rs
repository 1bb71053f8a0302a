//! Which peers are gone for good, since when, and which agent has them removed.
//!
//! A peer is *gone* while it owns addresses, no Node names it (see [`super::nodes`]) and no path through the mesh leads
//! to it. All three together, without a break, for the whole grace period: a Node that is deleted and made anew by its
//! kubelet, a restarted API server, a partition, a drained machine are no deaths. A Node whose disk was wiped names
//! another peer than before, so the former one is gone too, though the Node is not.
//!
//! Time counts by this agent's own watch. It goes on while the API server does not answer, but nobody is removed then:
//! the word of a server that is away is no word.
//!
//! **Who acts.** Any agent may: the removal is voted upon by the owners of ranges, a majority of which must acknowledge
//! it before anybody allocates from what is inherited, and a peer that some voter reaches is not removed. So two that
//! act at once do no harm, and only to save work the agents act in turn. The turn is read from the names: the owner
//! that follows the gone peer in the circle of names is first, and so each death has another heir.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_proto::PeerName;

/// How long a peer must be gone, unless the operator says otherwise: longer than a machine takes to be set up anew.
pub const GRACE: Duration = Duration::from_secs(600);
/// How long the next in turn waits for the one before it. Longer than a removal takes among peers that are there.
pub(super) const TURN: Duration = Duration::from_secs(15);
/// After so many turns all others act, should none of the first have done it.
const MAX_TURNS: u32 = 8;
/// How long until a removal that came to nothing is asked for again.
pub(super) const AGAIN: Duration = Duration::from_secs(60);

/// What an agent knows at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// This peer.
    pub(super) me: PeerName,
    /// Who owns addresses, and whether there is a path to it.
    pub(super) owners: &'a BTreeMap<PeerName, bool>,
    /// The peers that some Node names; none while the API server does not say.
    pub(super) registered: Option<&'a BTreeSet<PeerName>>,
}

/// Who has been gone since when.
#[derive(Debug, Clone)]
pub(super) struct Vigil {
    grace: Duration,
    gone: BTreeMap<PeerName, Gone>,
}

#[derive(Debug, Clone, Copy)]
struct Gone {
    since: Instant,
    asked: Option<Instant>,
}

impl Vigil {
    pub(super) const fn new(grace: Duration) -> Self {
        Self { grace, gone: BTreeMap::new() }
    }

    /// Takes note of the facts; returns whom this agent is to have removed now.
    pub(super) fn observe(&mut self, facts: Facts<'_>, now: Instant) -> Vec<PeerName> {
        let is_away = |peer: &PeerName| *peer != facts.me && facts.owners.get(peer) == Some(&false);
        // Without the server's word a peer neither begins to be gone nor ends to be, unless it is seen in the mesh.
        self.gone.retain(|peer, _| {
            is_away(peer) && facts.registered.is_none_or(|registered| !registered.contains(peer))
        });
        let Some(registered) = facts.registered else { return Vec::new() };
        for peer in facts.owners.keys().filter(|peer| is_away(peer) && !registered.contains(peer)) {
            self.gone.entry(*peer).or_insert(Gone { since: now, asked: None });
        }
        let grace = self.grace;
        let mut due = Vec::new();
        for (peer, gone) in &mut self.gone {
            if due_at(grace, *peer, *gone, facts) <= now {
                gone.asked = Some(now);
                due.push(*peer);
            }
        }
        due
    }

    /// When [`Self::observe`] is to be called again without news.
    pub(super) fn deadline(&self, facts: Facts<'_>) -> Option<Instant> {
        facts.registered?;
        self.gone.iter().map(|(peer, gone)| due_at(self.grace, *peer, *gone, facts)).min()
    }

    /// Who is gone, and since when.
    #[cfg(test)]
    fn gone(&self) -> impl Iterator<Item = (PeerName, Instant)> {
        self.gone.iter().map(|(peer, gone)| (*peer, gone.since))
    }
}

fn due_at(grace: Duration, peer: PeerName, gone: Gone, facts: Facts<'_>) -> Instant {
    match gone.asked {
        Some(asked) => asked + AGAIN,
        None => gone.since + grace + TURN * turn(peer, facts),
    }
}

/// How many agents have their turn before this one.
fn turn(gone: PeerName, facts: Facts<'_>) -> u32 {
    let may = |(peer, reachable): (&PeerName, &bool)| (*reachable || *peer == facts.me).then_some(*peer);
    let heirs: BTreeSet<PeerName> = facts.owners.iter().filter_map(may).collect();
    let mut circle = heirs.range(gone..).chain(heirs.range(..gone));
    let before = circle.position(|peer| *peer == facts.me).unwrap_or(heirs.len());
    u32::try_from(before).unwrap_or(u32::MAX).min(MAX_TURNS)
}

#[cfg(test)]
mod tests;
