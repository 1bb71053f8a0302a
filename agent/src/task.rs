//! Tasks with a name, an owner and an end.
//!
//! This is the only place that may call [`tokio::spawn`]: a task that nobody owns cannot be stopped, and one
//! without a name cannot be found in a log. A [`Task`] ends when its future does or when it is dropped, whichever
//! comes first; a [`Group`] does the same for many. Whoever spawns states in its module's docs why its tasks may
//! be cancelled at any `await`.

use std::future::Future;

use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::Instrument;

/// A running task. Dropping it ends the task at its next `await`.
#[derive(Debug)]
#[must_use = "dropping a task ends it"]
pub struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

/// Starts a task in a span of its name.
pub fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
    let future = future.instrument(tracing::debug_span!("task", name));
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that may: the task gets a name and an owner"
    )]
    let handle = tokio::spawn(future);
    Task { name, handle }
}

impl Task {
    /// Waits for the task's own end. A panic inside it is logged as an error and counts as its end.
    pub async fn finished(mut self) {
        if let Err(error) = (&mut self.handle).await {
            report(self.name, &error);
        }
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Any number of tasks of one kind with one owner. Dropping the group ends them all.
#[derive(Debug)]
pub struct Group<T> {
    name: &'static str,
    tasks: JoinSet<T>,
}

impl<T: Send + 'static> Group<T> {
    /// An empty group whose tasks will carry this name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, tasks: JoinSet::new() }
    }

    /// Starts one more task.
    pub fn spawn(&mut self, future: impl Future<Output = T> + Send + 'static) {
        self.tasks.spawn(future.instrument(tracing::debug_span!("task", name = self.name)));
    }

    /// How many tasks have not been collected with [`next`](Self::next).
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The result of the next task to end; none at once if the group is empty. A task that panicked is logged
    /// and passed over. May be cancelled without losing a result.
    pub async fn next(&mut self) -> Option<T> {
        loop {
            match self.tasks.join_next().await? {
                Ok(result) => return Some(result),
                Err(error) => report(self.name, &error),
            }
        }
    }
}

fn report(name: &'static str, error: &JoinError) {
    if error.is_panic() {
        tracing::error!(task = name, %error, "a task failed");
    }
}
