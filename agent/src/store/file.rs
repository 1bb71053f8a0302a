//! The file: how it is made, locked and opened.
//!
//! A store is made under another name and renamed when it is whole, so a file of the real name is never half
//! made, whenever the power goes. Everything happens under a lock on the directory, so two agents that start at
//! once cannot make two stores.
//!
//! redb's pages carry checksums, but it looks at them only after a crash, and what it finds broken then it rolls
//! back to the commit before. For us a commit that was answered must never be rolled back in silence. So the file
//! is first opened as a *copy in memory* ([`examine`]): damage shows there, and the file stays as it is. What
//! redb may roll back is only the commit that a crash interrupted, which nobody has been told of.

use std::fmt::Display;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend, StorageError};

use super::{FILE_NAME, Place, Store, StoreError, migrations, op};
use crate::identity::Identity;

/// Pages that redb may keep in memory. All that a node stores is read once at the start and then only written;
/// the pages that a commit touches are a few dozen.
const CACHE_BYTES: usize = 1024 * 1024;
/// Only root reads the identity.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
/// How long another process may take to end. A killed agent's memory is gone in milliseconds, on a machine that is
/// short of memory in a second or two; longer, and it is not about to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Opens a store, and waits for a process that has it to end: one that was killed holds its locks until the kernel
/// has taken it apart.
pub(super) fn patiently(
    data_dir: &Path,
    open: impl Fn() -> Result<Store, StoreError>,
) -> Result<Store, StoreError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut told = false;
    loop {
        match open() {
            Err(StoreError::InUse { .. }) if Instant::now() < deadline => {
                if !told {
                    let (dir, patience) = (data_dir.display(), LOCK_PATIENCE);
                    tracing::info!(
                        "Another process has the store in {dir}: waiting {patience:?} for it to end"
                    );
                    told = true;
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}

/// Which file a store is in, by which its absence shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    path: PathBuf,
    /// The file's device and number.
    number: (u64, u64),
}

impl Presence {
    fn of(path: PathBuf) -> Result<Self, StoreError> {
        match std::fs::metadata(&path) {
            Ok(found) => Ok(Self { path, number: (found.dev(), found.ino()) }),
            Err(error) => Err(StoreError::Unusable { path, error }),
        }
    }

    /// Where the file is, or was.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is still there. Anything but its absence is no reason to doubt it.
    ///
    /// # Errors
    /// It is not: [`StoreError::Gone`].
    pub fn check(&self) -> Result<(), StoreError> {
        let gone = match std::fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.number,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if gone { Err(StoreError::Gone { path: self.path.clone() }) } else { Ok(()) }
    }
}

/// Takes the directory for this process alone, and makes it if need be.
pub(super) fn lock(data_dir: &Path) -> Result<File, StoreError> {
    let unusable = |error| StoreError::Unusable { path: data_dir.to_owned(), error };
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(data_dir).map_err(unusable)?;
    let lock = File::open(data_dir).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: data_dir.join(FILE_NAME) }),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// Every file in `data_dir` that is a store's: the one in use, those set aside, one half made. For `weave reset`.
#[must_use]
pub fn files(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data_dir) else { return Vec::new() };
    let ours = |name: &str| {
        name.strip_prefix(FILE_NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(ours))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

impl Store {
    /// The store at `path`, made if there is none and brought to the present schema.
    pub(super) fn whole(path: PathBuf, lock: File) -> Result<Self, StoreError> {
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(&path)?,
            Err(error) => return Err(StoreError::Unusable { path, error }),
        }
        let database = reopen(&path)?;
        let presence = Presence::of(path)?;
        let store = Self { place: Place::File { presence, _lock: lock }, database };
        migrations::run(&store)?;
        Ok(store)
    }

    /// Sets the file aside, under the name of the peer that it belongs to, and makes a new one.
    pub(super) fn renewed(self, old: &Identity) -> Result<(Self, op::Found), StoreError> {
        let Place::File { presence: Presence { path, .. }, _lock: lock } = self.place else {
            return Err(damaged(&self.place, &"a store in memory is never from another machine"));
        };
        drop(self.database);
        move_aside(&path, &old.name().to_string())?;
        let store = Self::whole(path, lock)?;
        let found = op::load(&store)?;
        Ok((store, found))
    }
}

impl Store {
    /// Sets the file aside, under this name. Returns where it is.
    pub(super) fn moved_aside(self, name: &str) -> Result<PathBuf, StoreError> {
        let Place::File { presence: Presence { path, .. }, _lock: lock } = self.place else {
            return Err(damaged(&self.place, &"a store in memory is never set aside"));
        };
        drop(self.database);
        let aside = move_aside(&path, name);
        drop(lock);
        aside
    }
}

fn move_aside(path: &Path, name: &str) -> Result<PathBuf, StoreError> {
    let aside = unused(path, &name.replace(':', ""));
    std::fs::rename(path, &aside)
        .and_then(|()| sync_dir(path))
        .map_err(|error| StoreError::Unusable { path: aside.clone(), error })?;
    Ok(aside)
}

/// Opens a file that must be there and whole.
pub(super) fn reopen(path: &Path) -> Result<Database, StoreError> {
    let place = || path.to_owned();
    // redb takes an empty file for a new one; here it is one that has lost its content.
    match std::fs::metadata(path) {
        Ok(found) if found.len() == 0 => {
            return Err(StoreError::Damaged { path: place(), reason: "it is empty".to_owned() });
        }
        Ok(_) => {}
        Err(error) => return Err(StoreError::Unusable { path: place(), error }),
    }
    examine(path)?;
    builder().open(path).map_err(|error| {
        if let DatabaseError::Storage(StorageError::Io(error)) = error {
            return StoreError::Unusable { path: place(), error };
        }
        if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
            return StoreError::InUse { path: place() };
        }
        StoreError::Damaged { path: place(), reason: error.to_string() }
    })
}

/// Opens a copy and looks at every checksum. A node's store is a few megabytes: this takes some 10 ms.
fn examine(path: &Path) -> Result<(), StoreError> {
    let unusable = |error| StoreError::Unusable { path: path.to_owned(), error };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(unusable)?;
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)
        .and_then(|()| copy.write(0, &bytes))
        .map_err(|error| damaged(error.to_string()))?;
    drop(bytes);

    // Called when the file was not closed, which leads redb to look at the checksums by itself.
    let crashed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&crashed);
    let mut examined = builder()
        .set_repair_callback(move |_| seen.store(true, Ordering::Relaxed))
        .create_with_backend(copy)
        .map_err(|error| damaged(error.to_string()))?;
    if crashed.load(Ordering::Relaxed) {
        tracing::info!(store = %path.display(), "the store was not closed properly; all that was answered is in it");
        return Ok(());
    }
    match examined.check_integrity() {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged("a checksum is wrong".to_owned())),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// A name beside `path` that nothing has yet.
fn unused(path: &Path, suffix: &str) -> PathBuf {
    let mut aside = path.with_file_name(format!("{FILE_NAME}.{suffix}"));
    let mut number = 1;
    while aside.symlink_metadata().is_ok() {
        number += 1;
        aside = path.with_file_name(format!("{FILE_NAME}.{suffix}.{number}"));
    }
    aside
}

/// What cannot be read at this place.
pub(super) fn damaged(place: &Place, reason: &dyn Display) -> StoreError {
    StoreError::Damaged { path: place.path(), reason: reason.to_string() }
}

fn make(path: &Path) -> Result<(), StoreError> {
    let unfinished = path.with_file_name(format!("{FILE_NAME}.new"));
    let unusable = |error| StoreError::Unusable { path: unfinished.clone(), error };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&unfinished)
        .map_err(unusable)?;
    let commit = |reason: String| StoreError::Commit { path: unfinished.clone(), reason };
    let database = builder().create_file(file).map_err(|error| commit(error.to_string()))?;
    super::write(&database, &migrations::first()).map_err(|error| commit(error.to_string()))?;
    drop(database);
    std::fs::rename(&unfinished, path).and_then(|()| sync_dir(path)).map_err(unusable)
}

/// Makes a change of names durable.
fn sync_dir(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
