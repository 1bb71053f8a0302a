//! The targets that people gave, and the addresses that their names stand for.
//!
//! A name is looked up when it is given and then again and again, so that a node that moves is found. An answer that
//! fails changes nothing but the time of the next question: the last known addresses stay.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use crate::backoff::{Backoff, vary};
use crate::{Notice, Output, Target};

/// How often a name is looked up. A node that has moved is found within about a minute; a resolver answers a few
/// questions a minute from each node.
pub(crate) const REFRESH: Duration = Duration::from_secs(60);
/// How long to wait for an answer: longer than a resolver's own attempts (two servers, two tries, 5 s each).
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How many addresses of one name are tried: a headless service in front of a large mesh may have hundreds, and a few
/// of them are enough to learn about the others.
const MAX_ADDRESSES: usize = 8;

#[derive(Debug)]
enum Stage {
    /// It is an address.
    Literal,
    /// To be asked then.
    Due(Instant),
    /// Asked; given up then.
    Asked(Instant),
}

#[derive(Debug)]
struct Lookup {
    addresses: Vec<SocketAddr>,
    stage: Stage,
    backoff: Backoff,
    trouble: Option<String>,
}

/// The targets and their addresses.
#[derive(Debug)]
pub(crate) struct Lookups {
    targets: BTreeMap<Target, Lookup>,
    /// For targets that name no port.
    port: u16,
}

impl Lookups {
    pub(crate) const fn new(port: u16) -> Self {
        Self { targets: BTreeMap::new(), port }
    }

    /// Adds a target, or looks it up anew if it is one.
    pub(crate) fn add(&mut self, target: Target, now: Instant) {
        let (addresses, stage) = match target.literal(self.port) {
            Some(addr) => (vec![addr], Stage::Literal),
            None => (Vec::new(), Stage::Due(now)),
        };
        let lookup = self.targets.entry(target).or_insert_with(|| Lookup {
            addresses,
            stage: Stage::Due(now),
            backoff: Backoff::default(),
            trouble: None,
        });
        lookup.stage = stage;
        lookup.backoff.reset();
    }

    /// Keeps the targets that `keep` says.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Target) -> bool) {
        self.targets.retain(|target, _| keep(target));
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.targets.keys().cloned().collect()
    }

    /// The addresses of all targets.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.targets.values().flat_map(|lookup| lookup.addresses.iter().copied())
    }

    /// The addresses of one target.
    pub(crate) fn addresses_of(&self, target: &Target) -> Vec<SocketAddr> {
        self.targets.get(target).map(|lookup| lookup.addresses.clone()).unwrap_or_default()
    }

    /// The targets that could not be looked up: why, and when they are asked for again.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = (&Target, &str, Option<Instant>)> {
        self.targets.iter().filter_map(|(target, lookup)| {
            let again = match lookup.stage {
                Stage::Due(at) => Some(at),
                Stage::Asked(_) | Stage::Literal => None,
            };
            lookup.trouble.as_deref().map(|text| (target, text, again))
        })
    }

    /// An answer has come. One to a question that no longer matters is passed over.
    pub(crate) fn on_resolved(
        &mut self,
        target: &Target,
        found: Result<Vec<SocketAddr>, String>,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Output> {
        let lookup = self.targets.get_mut(target)?;
        if matches!(lookup.stage, Stage::Literal) {
            return None;
        }
        let found = found.and_then(|mut addresses| {
            addresses.sort_unstable();
            addresses.dedup();
            addresses.truncate(MAX_ADDRESSES);
            if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
        });
        match found {
            Ok(addresses) => {
                lookup.addresses = addresses;
                lookup.stage = Stage::Due(now + vary(REFRESH, rng));
                lookup.backoff.reset();
                lookup.trouble = None;
                None
            }
            Err(text) => lookup.fail(target, text, rng, now),
        }
    }

    /// Asks what is due, and gives up on what was asked long ago.
    pub(crate) fn on_timeout(&mut self, rng: &mut impl Rng, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (target, lookup) in &mut self.targets {
            match lookup.stage {
                Stage::Due(at) if at <= now => {
                    lookup.stage = Stage::Asked(now + PATIENCE);
                    outputs.push(Output::Resolve(target.clone()));
                }
                Stage::Asked(until) if until <= now => {
                    outputs.extend(lookup.fail(target, "no answer from the resolver".to_owned(), rng, now));
                }
                Stage::Due(_) | Stage::Asked(_) | Stage::Literal => {}
            }
        }
        outputs
    }

    /// When [`Self::on_timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let times = self.targets.values().filter_map(|lookup| match lookup.stage {
            Stage::Due(at) | Stage::Asked(at) => Some(at),
            Stage::Literal => None,
        });
        times.min()
    }
}

impl Lookup {
    fn fail(&mut self, target: &Target, text: String, rng: &mut impl Rng, now: Instant) -> Option<Output> {
        self.stage = Stage::Due(now + self.backoff.next(rng));
        let is_new = self.trouble.as_ref() != Some(&text);
        self.trouble = Some(text.clone());
        is_new.then(|| Output::Notify(Notice::Unresolved { target: target.clone(), text }))
    }
}

#[cfg(test)]
mod tests;
