//! `--ipalloc-init`: who takes part in the first split of the range.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use weave_proto::PeerName;

/// Who takes part in the first split of the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpallocInit {
    /// The peers agree; the number of founders may be given, and must then be given to all of them alike.
    Consensus(Option<NonZeroU16>),
    /// These peers, without asking anybody; every peer must be given the same list.
    Seed(BTreeSet<PeerName>),
    /// Not this one: it waits for the others and then asks for a share.
    Observer,
}

/// Why a text is no [`IpallocInit`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no way to start: {why}; write consensus, consensus=3, seed=NAME,NAME or observer")]
pub struct IpallocInitError {
    text: String,
    why: String,
}

impl FromStr for IpallocInit {
    type Err = IpallocInitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |why: String| IpallocInitError { text: text.to_owned(), why };
        match text.split_once('=') {
            None if text == "consensus" => Ok(Self::Consensus(None)),
            None if text == "observer" => Ok(Self::Observer),
            None if text == "seed" => Err(refused("the names of the seed peers are missing".to_owned())),
            Some(("consensus", founders)) => founders
                .parse()
                .map(|founders| Self::Consensus(Some(founders)))
                .map_err(|_| refused("the number of founders must be from 1 to 65535".to_owned())),
            Some(("seed", names)) => parse_names(names).map(Self::Seed).map_err(refused),
            Some(_) | None => Err(refused("there is no such mode".to_owned())),
        }
    }
}

fn parse_names(text: &str) -> Result<BTreeSet<PeerName>, String> {
    let mut names = BTreeSet::new();
    for name in text.split(',') {
        let name = name.trim().parse::<PeerName>().map_err(|error| {
            format!(
                "{error}; a seed is listed by the name that `weave status` prints there, not by its host name"
            )
        })?;
        if !names.insert(name) {
            return Err(format!("{name} is listed twice"));
        }
    }
    Ok(names)
}

impl fmt::Display for IpallocInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consensus(None) => f.write_str("consensus"),
            Self::Consensus(Some(founders)) => write!(f, "consensus={founders}"),
            Self::Observer => f.write_str("observer"),
            Self::Seed(names) => {
                let names: Vec<_> = names.iter().map(ToString::to_string).collect();
                write!(f, "seed={}", names.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_printed_the_same() {
        for text in ["consensus", "consensus=3", "observer", "seed=02:00:00:00:00:01,02:00:00:00:00:02"] {
            assert_eq!(text.parse::<IpallocInit>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "no such mode"),
            ("quorum", "no such mode"),
            ("observer=1", "no such mode"),
            ("consensus=0", "number of founders"),
            ("consensus=", "number of founders"),
            ("consensus=70000", "number of founders"),
            ("seed", "missing"),
            ("seed=", "no peer name"),
            ("seed=node1", "no peer name"),
            ("seed=02:00:00:00:00:01,02:00:00:00:00:01", "twice"),
        ] {
            let error = text.parse::<IpallocInit>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?} gave {error:?}");
        }
    }
}
