//! A value that one thread replaces and others read without waiting.
//!
//! A reader keeps its own reference and compares a version number: one load a packet, shared and unchanged almost
//! always. Only when the number has moved does it take the lock for as long as it takes to copy a pointer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The newest value.
pub(super) struct Published<T> {
    version: AtomicU64,
    current: Mutex<Arc<T>>,
}

/// One thread's view of it.
pub(super) struct Reader<T> {
    source: Arc<Published<T>>,
    version: u64,
    value: Arc<T>,
}

impl<T> Published<T> {
    pub(super) fn new(value: T) -> Self {
        Self { version: AtomicU64::new(1), current: Mutex::new(Arc::new(value)) }
    }

    pub(super) fn replace(&self, value: T) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl<T> Reader<T> {
    pub(super) fn new(source: &Arc<Published<T>>) -> Self {
        let version = source.version.load(Ordering::Acquire);
        let value = Arc::clone(&source.current.lock().unwrap_or_else(PoisonError::into_inner));
        Self { source: Arc::clone(source), version, value }
    }

    /// Whether a newer value is there.
    #[inline]
    pub(super) fn is_stale(&self) -> bool {
        self.source.version.load(Ordering::Acquire) != self.version
    }

    /// Takes the newest value.
    pub(super) fn refresh(&mut self) {
        *self = Self::new(&Arc::clone(&self.source));
    }

    /// The value as of the last refresh.
    #[inline]
    pub(super) const fn value(&self) -> &Arc<T> {
        &self.value
    }
}
