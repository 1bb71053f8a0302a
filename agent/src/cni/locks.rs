//! One request at a time for one attachment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use weave_proto::local::cni::AttachmentKey;

/// A lock for every attachment that somebody works on, and none for the others.
#[derive(Debug, Default)]
pub struct KeyLocks(Arc<Mutex<BTreeMap<AttachmentKey, Arc<AsyncMutex<()>>>>>);

/// The right to work on one attachment. Given up when dropped; those who wait get it in the order they came.
#[derive(Debug)]
pub struct KeyGuard {
    key: AttachmentKey,
    locks: Arc<Mutex<BTreeMap<AttachmentKey, Arc<AsyncMutex<()>>>>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl KeyLocks {
    /// Waits for the right to work on `key`.
    pub async fn lock(&self, key: &AttachmentKey) -> KeyGuard {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(key.clone()).or_default())
        };
        // Made before waiting, so that one who stops waiting clears the entry, too.
        let mut guard = KeyGuard { key: key.clone(), locks: Arc::clone(&self.0), held: None };
        guard.held = Some(lock.lock_owned().await);
        guard
    }

    /// How many attachments are being worked on or waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody works on anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        // The map's own reference is the last one: nobody holds the lock or waits for it.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests;
