//! What must outlive the process: one redb file, one transaction a batch, durable before the answer.
//!
//! ```text
//!   brain --commit(ops)--> one transaction --fdatasync--> returns: now promises may be kept
//! ```
//!
//! The promise that no address is ever given out twice rests on two sentences: *what was answered is in the
//! store*, and *what is in the store is never guessed*. So [`Store::commit`] returns only when the operating
//! system says that the bytes are on the disk, a batch is there whole or not at all, and a file that cannot be
//! read in full is an error that names the file and the remedy. It is never repaired by leaving something out,
//! and never made anew in silence.
//!
//! | table | key | value (JSON) | holds |
//! |---|---|---|---|
//! | `meta` | `schema` | number | the layout, see [`migrations`] |
//! | `identity` | `self` | seed, uid, machine | who this peer is and how often it has started |
//! | `ipam` | `state`, `generation` | | what this peer knows and has promised about ownership |
//! | `allocations` | container, NUL, interface | | addresses given out, with their ports |
//! | `lost` | as `allocations` | | addresses that are another peer's now, while containers hold them |
//! | `freed` | the address | | addresses in quarantine |
//! | `targets` | `all` | list of texts | whom people want to be reached |
//! | `peers` | the name | | last known facts of other peers |
//! | `ways` | the name | | the last ways to them |
//!
//! Values are JSON because it describes itself: a field that a later version adds has a default, an earlier
//! version ignores it, and a person can read what is there. Only a change that this does not cover needs a
//! migration. Speed is no reason for anything else: a commit takes as long as the disk does.
//!
//! **One process.** The data directory is locked (`flock`) from [`Store::open`] until the store is dropped.
//!
//! **A deleted file** takes writes as before, and a restart would know nothing of them. So each commit looks whether
//! its file is still the one in the directory, and fails if not.
//!
//! **A failed commit** (a full disk) leaves what was there before, and every commit after it fails too: whoever
//! asked for it has already changed its mind in memory, so the only way on is to start again from what is on the
//! disk. The agent ends; the pods talk on.

mod file;
mod migrations;
mod op;

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::identity::{Identity, IdentityError, Machine};
pub use file::{Presence, files};
pub use op::Loaded;
pub use weave_router::StoreOp;

/// The store's name inside the data directory.
pub const FILE_NAME: &str = "weave.redb";

/// All tables have the same form; what is in them is the matter of [`op`].
type Definition = TableDefinition<'static, &'static str, &'static [u8]>;

/// A table, by its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Meta,
    Identity,
    Ipam,
    Allocations,
    Lost,
    Freed,
    Targets,
    Peers,
    Ways,
}

impl Table {
    const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Identity => "identity",
            Self::Ipam => "ipam",
            Self::Allocations => "allocations",
            Self::Lost => "lost",
            Self::Freed => "freed",
            Self::Targets => "targets",
            Self::Peers => "peers",
            Self::Ways => "ways",
        }
    }

    const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// One key's new value; none deletes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    table: Table,
    key: String,
    value: Option<Vec<u8>>,
}

/// Why there is no store, or a change is not in it. Every message names the file and what helps.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be used.
    #[error(
        "cannot use the store {path}: {error}; the data directory must be one that this user may write to (the agent \
         runs as root), or choose another one with --data-dir"
    )]
    Unusable {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "the store {path} is in use by another process: a weave agent is running with this data directory \
         already; stop it, or choose another one with --data-dir"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file that is open is no longer the one that a restart would find.
    #[error(
        "the store {path} was deleted or replaced while the agent runs, so nothing more can be promised: stop the agent, \
         put the data directory back from a copy, or start again without it: this node then joins as a new peer, and \
         `weave rmpeer` on another node frees the addresses of the old one"
    )]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error(
        "the store {path} was written by a later version of weave (schema {found}, this one knows up to {known}): \
         run that version or a later one; nothing was changed"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The latest known here.
        known: u32,
    },
    /// It cannot be read.
    #[error(
        "the store {path} is damaged: {reason}. Nothing was changed. Put a copy of the file back, or move it away \
         and start again: this node then joins as a new peer, and `weave rmpeer` on another node frees the \
         addresses of the old one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A change could not be made durable.
    #[error(
        "cannot write to the store {path}: {reason}; what was in it is unharmed: free space on that disk or look \
         at the kernel's log for its errors"
    )]
    Commit {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A change cannot be written down.
    #[error("cannot encode {what} for the store: {reason}")]
    Unencodable {
        /// What.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// There is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The open store.
pub struct Store {
    place: Place,
    database: Database,
}

/// Where the bytes are.
enum Place {
    /// In a file, under a lock on its directory that ends with this value.
    File { presence: Presence, _lock: File },
    /// In memory: the twin for tests, which runs the same code on the same tables.
    Memory,
}

impl Store {
    /// Opens the store in `data_dir`, makes it if there is none, and counts this start. What it holds is read
    /// whole, so that damage shows now and not later. A store that was made on another machine is set aside and
    /// a new one is made, with a new identity. Waits a moment for another process to end that has it.
    ///
    /// # Errors
    /// See [`StoreError`]. Whatever the error, the file is as it was.
    pub fn open(data_dir: &Path, machine: &Machine) -> Result<(Self, Loaded), StoreError> {
        let mut store =
            file::patiently(data_dir, || Self::whole(data_dir.join(FILE_NAME), file::lock(data_dir)?))?;
        let mut found = op::load(&store)?;
        if let Some(identity) = found.identity.as_ref().filter(|known| !known.machine.may_be(machine)) {
            let old = Identity::from_seed(identity.seed()?, identity.uid())?;
            (store, found) = store.renewed(&old)?;
            return op::start(store, found, machine, Some(old.name()));
        }
        op::start(store, found, machine, None)
    }

    /// Sees to it that the next start with `data_dir` is that of another peer. A store that knows of its peer's removal
    /// stays, for it knows what the new peer needs; any other is set aside. Returns where.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_aside(data_dir: &Path) -> Result<Option<PathBuf>, StoreError> {
        let store = Self::whole(data_dir.join(FILE_NAME), file::lock(data_dir)?)?;
        let found = op::load(&store)?;
        let name = match &found.identity {
            Some(identity) => Identity::from_seed(identity.seed()?, identity.uid())?.name(),
            None => return store.moved_aside("nobody").map(Some),
        };
        if op::is_removed(name, &found.ipam) {
            return Ok(None);
        }
        store.moved_aside(&name.to_string()).map(Some)
    }

    /// A store without a file, for tests. It starts empty and ends with the value.
    ///
    /// # Errors
    /// There are no random numbers for an identity.
    pub fn in_memory(machine: &Machine) -> Result<(Self, Loaded), StoreError> {
        let place = Place::Memory;
        let database = file::builder()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(|error| file::damaged(&place, &error))?;
        let store = Self { place, database };
        store.apply(migrations::first())?;
        let found = op::load(&store)?;
        op::start(store, found, machine, None)
    }

    /// Makes all of `ops` durable in one transaction, or none of them. When it returns, they are on the disk. An
    /// empty batch touches nothing. Blocks for as long as the disk takes, typically 0.1 to 10 ms.
    ///
    /// # Errors
    /// The changes could not be made durable; the store holds what it held before.
    pub fn commit(&self, ops: Vec<StoreOp>) -> Result<(), StoreError> {
        let changes = ops.into_iter().map(op::changes).collect::<Result<Vec<_>, _>>()?;
        self.apply(changes.into_iter().flatten().collect())
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        if let Place::File { presence, .. } = &self.place {
            presence.check()?;
        }
        write(&self.database, &changes)
            .map_err(|error| StoreError::Commit { path: self.place.path(), reason: error.to_string() })
    }

    /// By which others see whether the file is still there; none for a store in memory.
    #[must_use]
    pub fn presence(&self) -> Option<Presence> {
        match &self.place {
            Place::File { presence, .. } => Some(presence.clone()),
            Place::Memory => None,
        }
    }

    /// All of a table, in the order of keys.
    fn read(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        read(&self.database, table).map_err(|error| file::damaged(&self.place, &error))
    }
}

impl Place {
    fn path(&self) -> PathBuf {
        match self {
            Self::File { presence, .. } => presence.path().to_owned(),
            Self::Memory => PathBuf::from("(in memory)"),
        }
    }
}

fn write(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // One fdatasync a commit: see docs/adr/0005-redb.md for why this is enough.
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(false);
    for change in changes {
        let mut table = transaction.open_table(change.table.definition())?;
        match &change.value {
            Some(value) => table.insert(change.key.as_str(), value.as_slice())?,
            None => table.remove(change.key.as_str())?,
        };
    }
    transaction.commit()?;
    Ok(())
}

fn read(database: &Database, table: Table) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = database.begin_read()?;
    let opened = match transaction.open_table(table.definition()) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut rows = Vec::new();
    for row in opened.iter()? {
        let (key, value) = row?;
        rows.push((key.value().to_owned(), value.value().to_owned()));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
