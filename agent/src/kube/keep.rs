//! Keeping the cluster's objects and this node's copies of them.
//!
//! Every agent that knows what an object said puts it back when it is gone; the API server lets one of them win. An
//! agent that finds something it cannot use goes on with what it has, and says so.

use std::collections::BTreeMap;

use rand::Rng;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use weave_proto::PeerName;
use weave_proto::local::status::{ACKNOWLEDGED, Status};

use super::api::{Api, ApiError, Change, Kind, Place};
use super::attend::Surroundings;
use super::backoff::{Backoff, chance};
use super::follow::{View, follow};
use super::objects::{Anything, ConfigMap, Object};
use super::universe::Decision;
use super::{Cluster, secret, universe};
use crate::task::{self, Task};

/// Agents that find the same thing missing write it at different times within this: one is enough.
const SPREAD: Duration = Duration::from_secs(3);

/// A single object, followed.
pub(super) struct Followed<T> {
    pub(super) view: watch::Receiver<View<T>>,
    _task: Task,
}

impl<T: Object> Followed<T> {
    pub(super) fn start(api: &Api, place: Place, name: &'static str) -> Self {
        let (sender, view) = watch::channel(View::default());
        let task = task::spawn(name, follow(api.clone(), place, Some(name.to_owned()), sender));
        Self { view, _task: task }
    }
}

impl Cluster {
    /// Keeps the copy as the Secret says, and the Secret there.
    pub(super) async fn keep_secret(&self, around: &Surroundings) {
        let Some(copy) = &self.secret_copy else { return };
        let place = Place::secrets(&self.namespace);
        let followed = Followed::<super::objects::Secret>::start(&self.api, place.clone(), secret::NAME);
        let mut view = followed.view.clone();
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        loop {
            let found = view.borrow_and_update().current().map(|found| found.get(secret::NAME).cloned());
            match found {
                Some(Some(found)) => {
                    let written = secret::read(&found).and_then(|text| {
                        secret::write(copy, &text).map_err(|error| {
                            format!("cannot write the cluster secret to {}: {error}", copy.display())
                        })
                    });
                    around.note("secret", written.err());
                }
                Some(None) => {
                    sleep(SPREAD.mul_f64(rng.random_range(0.0..1.0))).await;
                    if let Ok(text) = std::fs::read_to_string(copy)
                        && let Some(pause) =
                            put_back(&self.api, &place, &secret::object(&text), &mut backoff, &mut rng).await
                    {
                        sleep(pause).await;
                        continue;
                    }
                }
                None => {}
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps the object there that decided the first split, and in it the names of all that were removed.
    pub(super) async fn keep_universe(&self, around: &Surroundings, followed: &Followed<ConfigMap>) {
        let place = Place::config_maps(&self.namespace);
        let (mut view, mut status) = (followed.view.clone(), around.status.clone());
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        let mut told = BTreeMap::new();
        loop {
            let found = view.borrow_and_update().current().map(|found| found.get(universe::NAME).cloned());
            let (removed, in_universe) = {
                let status = status.borrow_and_update();
                (removed(&status), status.ipam.as_ref().is_some_and(|ipam| ipam.universe.is_some()))
            };
            let decision = around.founding.clone().map(|founding| Decision::new(self.range, founding));
            let step = match (found, decision) {
                (Some(Some(found)), decision) => {
                    around.note("universe", self.disagreement(&found, decision.as_ref()));
                    universe::missing_tombstones(&found, &removed).map(Step::Patch)
                }
                (Some(None), Some(decision)) if in_universe => Some(Step::Create(decision.object(&removed))),
                (Some(None) | None, _) => None,
            };
            if let Some(step) = step {
                sleep(SPREAD.mul_f64(rng.random_range(0.0..1.0))).await;
                let pause = match step {
                    Step::Create(object) => {
                        put_back(&self.api, &place, &object, &mut backoff, &mut rng).await
                    }
                    Step::Patch(patch) => {
                        let done: Result<Anything, ApiError> =
                            self.api.patch(&place, universe::NAME, Change::Fields, &patch).await;
                        pause_after(done, &mut backoff, &mut rng)
                    }
                };
                if let Some(pause) = pause {
                    sleep(pause).await;
                    continue;
                }
            }
            told.clone_from(&removed);
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = status.wait_for(|status| self::removed(status) != told) => {
                    if changed.is_err() { return }
                }
            }
        }
    }

    /// How the object contradicts what this agent knows.
    fn disagreement(&self, found: &ConfigMap, ours: Option<&Decision>) -> Option<String> {
        match (Decision::read(found, self.range), ours) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(theirs), Some(ours)) if theirs != *ours => Some(format!(
                "the ConfigMap {} names another first split than the one that this agent's addresses come from: on a \
                 Node whose pods may be lost stop the agent and run `weave reset`, or delete the ConfigMap if it is \
                 the one that is wrong",
                universe::NAME
            )),
            (Ok(_), _) => None,
        }
    }
}

enum Step {
    Create(Value),
    Patch(Value),
}

/// Creates the object; how long to wait if that failed.
async fn put_back(
    api: &Api,
    place: &Place,
    object: &Value,
    backoff: &mut Backoff,
    rng: &mut impl Rng,
) -> Option<Duration> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let done: Result<Anything, ApiError> = api.create(place, object).await;
    if done.is_ok() {
        tracing::warn!("Somebody has deleted {name} in the namespace of the agents: put back");
    }
    pause_after(done, backoff, rng)
}

/// Whether and how long to wait before the same is tried again. What others have done meanwhile, the watch tells.
fn pause_after(
    done: Result<Anything, ApiError>,
    backoff: &mut Backoff,
    rng: &mut impl Rng,
) -> Option<Duration> {
    match done {
        Ok(_) => {
            backoff.succeed();
            None
        }
        Err(error) if matches!(error.kind, Kind::Conflict | Kind::NotFound) => None,
        Err(error) => {
            tracing::debug!(%error, "an object of the cluster was not kept");
            Some(backoff.fail(error.kind.asked(), rng))
        }
    }
}

/// Who was removed for good, and who inherited.
pub(super) fn removed(status: &Status) -> BTreeMap<PeerName, PeerName> {
    let removed = status.ipam.iter().flat_map(|ipam| &ipam.removed);
    removed.filter(|removed| removed.state == ACKNOWLEDGED).map(|it| (it.peer, it.heir)).collect()
}
