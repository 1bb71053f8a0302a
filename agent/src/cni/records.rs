//! The attachments that the allocator cannot know whole: those whose address another IPAM plugin gave, and the
//! addresses that `weave-ipam` gave out for other plugins' interfaces.
//!
//! An ordinary pod needs no file here: its address and port are one record in the store, written in one
//! transaction, and its label is on its link. These two kinds are rare, and a file each is enough: written beside
//! its place, flushed, renamed, the folder flushed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_proto::local::cni::{AttachmentKey, Moment, PodPort, Tombstone};

/// Where records are, inside the data directory.
const RECORDS: &str = "cni/records";

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose.
    pub key: AttachmentKey,
    /// The network's name.
    pub network: String,
    /// When its ADD began.
    pub begun: Moment,
    /// The port, where the address is another plugin's; none where the interface is.
    pub port: Option<PodPort>,
}

/// The folder of records.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// The records in this data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join(RECORDS) }
    }

    /// Writes a record, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, record: &Record) -> std::io::Result<()> {
        let mut document = serde_json::to_vec(record)?;
        document.push(b'\n');
        write_durably(&self.dir, &Tombstone::file_name(&record.key), &document)
    }

    /// The record of a key. One that cannot be read is none: it is reported, and DEL still works from the link.
    #[must_use]
    pub fn get(&self, key: &AttachmentKey) -> Option<Record> {
        let record = read(&self.dir.join(Tombstone::file_name(key)))?;
        (record.key == *key).then_some(record)
    }

    /// Removes the record of a key, durably. Fine if there is none.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, key: &AttachmentKey) -> std::io::Result<()> {
        match std::fs::remove_file(self.dir.join(Tombstone::file_name(key))) {
            Ok(()) => File::open(&self.dir)?.sync_all(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All records.
    #[must_use]
    pub fn list(&self) -> Vec<Record> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let names = entries
            .filter_map(Result::ok)
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
        names.filter_map(|entry| read(&entry.path())).collect()
    }
}

/// The ports in this data directory whose addresses other IPAM plugins gave: for the complete desired state of the
/// node, which must hold them beside the allocator's.
#[must_use]
pub fn delegated_ports(data_dir: &Path) -> Vec<PodPort> {
    Records::new(data_dir).list().into_iter().filter_map(|record| record.port).collect()
}

fn read(path: &Path) -> Option<Record> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the record of an attachment");
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "illegible record of an attachment"),
        )
        .ok()
}

/// Writes a file so that it is there whole after a crash, or not at all.
pub(super) fn write_durably(dir: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let beside = dir.join(format!(".{name}"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, dir.join(name))?;
    File::open(dir)?.sync_all()
}
