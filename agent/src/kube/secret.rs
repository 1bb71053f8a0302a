//! The cluster secret: a Kubernetes Secret that the first agent creates, and a copy of it on each node.
//!
//! The agent starts from the copy, so that it needs no API server after its first start, and the room of links watches
//! that file anyway ([`crate::peer::Secrets`]): whatever the Secret says is written there and is in use two seconds
//! later. The Secret's value has the file's form, so a rotation without an outage is three edits of the Secret: `old`
//! and `new` on a line each, then the lines exchanged, then `new` alone.
//!
//! A Secret that is deleted is put back from the copies. A node without a copy waits for that a while, if there are
//! agents that have one; should it lose patience first, its new random secret becomes everybody's.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::nodes;
use super::objects::{Node, Secret};
use super::universe::some_of;
use crate::peer::Secrets;

/// The Secret's name.
pub(super) const NAME: &str = "weave-net-secret";
/// The key in it.
const KEY: &str = "secrets";
/// The copy, in the data directory.
pub const FILE: &str = "cluster-secret";

/// How long agents that have a copy are waited for to put the Secret back: several of their pauses after a failure.
pub(super) const HOLDERS: Duration = Duration::from_secs(30);

/// The secrets in the object, in the form of the file.
pub(super) fn read(object: &Secret) -> Result<String, String> {
    let origin = format!("the key {KEY} of the Secret {NAME}");
    let value = object.data.get(KEY).ok_or_else(|| format!("{origin} is missing"))?;
    let text = String::from_utf8(value.0.clone()).map_err(|_| format!("{origin} is no text"))?;
    Secrets::from_lines(&text, &origin).map_err(|error| error.to_string())?;
    Ok(text)
}

/// The object to create.
pub(super) fn object(text: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": { "name": NAME, "labels": { "name": "weave-net" } },
        "stringData": { KEY: text },
    })
}

/// A new secret, as nobody can guess it.
pub(super) fn random() -> Result<String, &'static str> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "the system has no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect())
}

/// Why a node without a copy should not yet create the Secret. `since` is when it was first found missing.
pub(super) fn reason_to_wait(
    nodes: &BTreeMap<String, Node>,
    own: &str,
    since: Instant,
    now: Instant,
) -> Option<String> {
    let holders = nodes::in_a_universe(nodes, own);
    (!holders.is_empty() && now < since + HOLDERS)
        .then(|| format!("waiting for the agent of {} to put the Secret {NAME} back", some_of(&holders)))
}

/// Writes the copy, readable for root only. Whoever reads it finds the old one or the new one.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn with(value: Option<&str>) -> Secret {
        let value = value.map(|value| (KEY.to_owned(), k8s_openapi::ByteString(value.as_bytes().to_vec())));
        Secret { data: value.into_iter().collect(), ..Secret::default() }
    }

    #[test]
    fn a_random_secret_is_strong_and_never_the_same() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_ne!(one, other);
        assert!(Secrets::from_lines(&one, "here").unwrap().warnings().is_empty());
    }

    #[test]
    fn a_secret_without_sense_is_refused_by_name_and_not_shown() {
        assert!(read(&with(None)).unwrap_err().contains("is missing"));
        assert!(read(&with(Some("# nothing\n"))).unwrap_err().contains(NAME));
        let long = "hunter2".repeat(1000);
        assert!(!read(&with(Some(&long))).unwrap_err().contains("hunter2"));
        assert_eq!(read(&with(Some("old\nnew\n"))).unwrap(), "old\nnew\n");
    }

    #[test]
    fn the_copy_is_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        write(&path, "one\n").unwrap();
        write(&path, "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_node_without_a_copy_waits_for_those_that_have_one_but_not_for_ever() {
        let now = Instant::now();
        let mut holder = Node::default();
        holder.metadata.annotations.universe = Some("00ff".to_owned());
        let nodes = BTreeMap::from([("b".to_owned(), holder)]);
        assert!(reason_to_wait(&nodes, "a", now, now).unwrap().contains('b'));
        assert_eq!(reason_to_wait(&nodes, "a", now, now + HOLDERS), None);
        assert_eq!(reason_to_wait(&nodes, "b", now, now), None);
        assert_eq!(reason_to_wait(&BTreeMap::new(), "a", now, now), None);
    }
}
