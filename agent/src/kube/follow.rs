//! Following a kind of objects: list them once, then be told of each change, for as long as the agent runs.
//!
//! ```text
//!   List ──ok──> Watch(version) ──ended by the server──> Watch(later version)
//!    ^ │            │    │ failed ──────── pause ───────────^
//!    └─┘ failed,    │
//!    pause          └── 410: the version is forgotten ── pause ──> List
//! ```
//!
//! What was known stays known while the server cannot be reached: [`View::trouble`] says so, and nothing is ever
//! concluded from silence. What decides is [`Course`], which has no clock and no connection; [`follow`] does what it
//! says. Cancelled at any `await`, it leaves the last view standing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use kube::core::watch::WatchEvent;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::api::{Api, ApiError, Kind, Place};
use super::backoff::{Backoff, chance};
use super::objects::Object;

/// The server ends a watch after a time between this and twice this, drawn anew each time so that the agents of a
/// cluster do not return together. Short of the five minutes at which load balancers drop silent connections.
const WATCH_SECONDS: u32 = 145;
/// A watch whose end is overdue by this much is a dead connection.
const OVERDUE: Duration = Duration::from_secs(10);
/// After a forgotten version all agents list anew at once; they do it within this time.
const SPREAD: Duration = Duration::from_secs(5);

/// The objects as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View<T> {
    /// By name; none before the first complete list.
    pub(super) objects: Option<BTreeMap<String, T>>,
    /// Why changes may have been missed: the API server's answer to the last attempt.
    pub(super) trouble: Option<ApiError>,
}

impl<T> Default for View<T> {
    fn default() -> Self {
        Self { objects: None, trouble: None }
    }
}

impl<T> View<T> {
    /// The objects, if they are as the API server has them now.
    pub(super) const fn current(&self) -> Option<&BTreeMap<String, T>> {
        match (&self.objects, &self.trouble) {
            (Some(objects), None) => Some(objects),
            (Some(_) | None, _) => None,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Read everything.
    List,
    /// Be told what has changed since this version.
    Watch(String),
}

/// What became of the last step, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything was read, as of this version.
    Listed(String),
    /// Something was told; it brings the objects to this version.
    Told(String),
    /// The server ended the watch when its time was over.
    Ended,
    /// It failed.
    Failed(Kind),
}

/// Where following stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Course {
    version: Option<String>,
    told: bool,
    backoff: Backoff,
}

impl Course {
    /// What to do next.
    pub(super) fn step(&self) -> Step {
        self.version.clone().map_or(Step::List, Step::Watch)
    }

    /// Takes note of what happened. Returns how long to wait before the next step; nothing is to be waited for
    /// where the step goes on.
    pub(super) fn on(&mut self, outcome: Outcome, rng: &mut impl Rng) -> Duration {
        match outcome {
            Outcome::Listed(version) => {
                self.version = Some(version);
                self.told = false;
                // A list alone does not show that the watch will work, so the pauses go on growing until it has.
                Duration::ZERO
            }
            Outcome::Told(version) => {
                self.version = Some(version);
                self.told = true;
                self.backoff.succeed();
                Duration::ZERO
            }
            Outcome::Ended => {
                self.backoff.succeed();
                Duration::ZERO
            }
            Outcome::Failed(Kind::Gone) => {
                self.version = None;
                // Gone at once after a list is a server in trouble; gone after a while is ordinary.
                let pause = if self.told { Duration::ZERO } else { self.backoff.fail(None, rng) };
                self.told = false;
                pause + SPREAD.mul_f64(rng.random_range(0.0..1.0))
            }
            Outcome::Failed(kind) => self.backoff.fail(kind.asked(), rng),
        }
    }
}

/// Follows the objects at `place`, that of one name if a name is given, until the reader is gone.
pub(super) async fn follow<T: Object>(
    api: Api,
    place: Place,
    name: Option<String>,
    view: watch::Sender<View<T>>,
) {
    let (course, rng) = (Course::default(), chance());
    let mut follower = Follower { api, place, name, view, course, rng };
    while !follower.view.is_closed() {
        let outcome = match follower.course.step() {
            Step::List => follower.list().await.map(Outcome::Listed),
            Step::Watch(version) => follower.watch(&version).await.map(|()| Outcome::Ended),
        };
        let outcome = outcome.unwrap_or_else(|error| failed(&follower.view, error));
        let pause = follower.course.on(outcome, &mut follower.rng);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

struct Follower<T> {
    api: Api,
    place: Place,
    name: Option<String>,
    view: watch::Sender<View<T>>,
    course: Course,
    rng: StdRng,
}

impl<T: Object> Follower<T> {
    /// Reads everything; returns the version as of which it is.
    async fn list(&self) -> Result<String, ApiError> {
        let mut objects = BTreeMap::new();
        let mut next: Option<String> = None;
        let version = loop {
            let page = self.api.page::<T>(&self.place, self.name.as_deref(), next.as_deref()).await?;
            objects.extend(page.items.into_iter().map(named));
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(token) => next = Some(token),
                None => break page.metadata.resource_version,
            }
        };
        self.view.send_if_modified(|view| {
            let listed = View { objects: Some(objects), trouble: None };
            let changed = *view != listed;
            *view = listed;
            changed
        });
        Ok(version)
    }

    /// Watches until the server ends it.
    async fn watch(&mut self, version: &str) -> Result<(), ApiError> {
        let seconds = self.rng.random_range(WATCH_SECONDS..=WATCH_SECONDS * 2);
        let events = self.api.watch::<T>(&self.place, self.name.as_deref(), version, seconds).await?;
        self.view.send_if_modified(|view| view.trouble.take().is_some());
        let until = Duration::from_secs(u64::from(seconds)) + OVERDUE;
        let watching = async {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let version = take(event?, &self.view)?;
                self.course.on(Outcome::Told(version), &mut self.rng);
            }
            Ok(())
        };
        timeout(until, watching).await.unwrap_or(Ok(()))
    }
}

/// Shows the trouble.
fn failed<T: Object>(view: &watch::Sender<View<T>>, error: ApiError) -> Outcome {
    let kind = error.kind;
    view.send_if_modified(|view| {
        let changed = view.trouble.as_ref() != Some(&error);
        view.trouble = Some(error);
        changed
    });
    Outcome::Failed(kind)
}

/// By name, and without the version, so that equal objects are equal.
fn named<T: Object>(mut object: T) -> (String, T) {
    object.metadata_mut().resource_version = String::new();
    (object.metadata().name.clone(), object)
}

/// Takes an event in; returns the version it brings.
fn take<T: Object>(event: WatchEvent<T>, view: &watch::Sender<View<T>>) -> Result<String, ApiError> {
    let (object, is_there) = match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, true),
        WatchEvent::Deleted(object) => (object, false),
        WatchEvent::Bookmark(bookmark) => return Ok(bookmark.metadata.resource_version),
        WatchEvent::Error(status) => {
            let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let kind = super::api::refusal(status.code, asked);
            return Err(ApiError::new(kind, "go on watching".to_owned(), status.message));
        }
    };
    let version = object.metadata().resource_version.clone();
    let (name, object) = named(object);
    view.send_if_modified(|view| {
        let objects = view.objects.get_or_insert_default();
        if is_there {
            let changed = objects.get(&name) != Some(&object);
            objects.insert(name, object);
            changed
        } else {
            objects.remove(&name).is_some()
        }
    });
    Ok(version)
}

#[cfg(test)]
mod tests;
