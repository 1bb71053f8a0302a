//! DELs that the shim could not tell us of.
//!
//! The shim leaves a file for each ([`Tombstone`]). They are carried out before the socket opens, before each ADD,
//! and whenever one appears. Each is looked at again under the lock of its attachment, so that it is carried out
//! once, and in its place among the other requests for it; it is removed after the work is done. What cannot be
//! carried out stays for the next time.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use weave_proto::local::cni::{AttachmentKey, ErrorCode, Refusal, TOMBSTONES, Tombstone};

use super::del::Undo;
use super::{Addresses, Cni, Ports};

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Carries out every tombstone there is. Goes on over errors, which are logged.
    pub async fn carry_out_tombstones(&self) {
        for key in waiting(&self.tombstones_dir()) {
            let _lock = self.locks.lock(&key).await;
            if let Err(refusal) = self.carry_out_tombstone_of(&key).await {
                tracing::warn!(container = %key, failure = %refusal, "could not carry out a DEL from while the agent was away");
            }
        }
    }

    /// Carries out the tombstone of this attachment, if there is one. The caller holds its lock.
    pub(super) async fn carry_out_tombstone_of(&self, key: &AttachmentKey) -> Result<(), Refusal> {
        let path = self.tombstones_dir().join(Tombstone::file_name(key));
        let Some(tombstone) = read(&path).filter(|tombstone| tombstone.del.key == *key) else {
            return Ok(());
        };
        if tombstone.ipam_only {
            self.release_locked(key).await?;
        } else {
            let hint = tombstone.host_interface.as_deref();
            self.detach_locked(Undo { key, begun: &tombstone.del.begun, hint }, None).await?;
        }
        tracing::info!(container = %key, "carried out a DEL from while the agent was away");
        remove(&path).map_err(|error| {
            Refusal::new(ErrorCode::Io, format!("cannot remove the tombstone {}: {error}", path.display()))
        })
    }

    fn tombstones_dir(&self) -> PathBuf {
        self.paths.data_dir.join(TOMBSTONES)
    }
}

/// Carries out tombstones as they appear, for as long as it is polled.
///
/// # Errors
/// The kernel cannot watch the folder.
pub async fn watch<A: Addresses, P: Ports>(cni: Arc<Cni<A, P>>) -> std::io::Result<()> {
    let dir = cni.tombstones_dir();
    std::fs::create_dir_all(&dir)?;
    let watcher = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watcher, &dir, inotify::WatchFlags::MOVED_TO)?;
    #[expect(deprecated, reason = "unsound only for types whose descriptor may change; an OwnedFd's cannot")]
    let watcher = AsyncFd::new(watcher)?;
    // What came between the start and the watch.
    cni.carry_out_tombstones().await;
    let mut events = vec![0; 4096];
    loop {
        let mut ready = watcher.readable().await?;
        // What the events say does not matter; the folder says it all.
        match ready.try_io(|fd| rustix::io::read(fd.get_ref(), events.as_mut_slice()).map_err(Into::into)) {
            Ok(Err(error)) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Ok(_) => cni.carry_out_tombstones().await,
            Err(_would_block) => {}
        }
    }
}

/// The attachments that tombstones are there for. An illegible one is put out of the way, once.
fn waiting(dir: &Path) -> Vec<AttachmentKey> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    paths.iter().filter_map(|path| read(path)).map(|tombstone| tombstone.del.key).collect()
}

fn read(path: &Path) -> Option<Tombstone> {
    let bytes = std::fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(tombstone) => Some(tombstone),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "illegible tombstone, put aside");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _stays_then = std::fs::rename(path, path.with_file_name(format!(".illegible-{name}")));
            None
        }
    }
}

/// Durably: a tombstone that came back after a crash could free what was given out since.
fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}
