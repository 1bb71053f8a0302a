//! What must be settled before an agent that has no ring can take part: who is at home here, the secret, the universe.
//!
//! ```text
//!   the Nodes are known ──> this peer is registered ──> the range is apart from Services ──> secret ──> universe
//! ```
//!
//! Everything in this order, again from the start after each failure or wait; each step that is done is found done. An
//! agent that has a ring and a copy of the secret waits for nothing but a short look at the list of removed peers, if the
//! API server answers at all: its pods matter more than the API server. What it would have been told here it is told
//! later ([`super::attend`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::time::{sleep, timeout};
use weave_proto::peer::ipam::Founding;

use super::api::{ApiError, Change, Kind, Place};
use super::backoff::{Backoff, chance};
use super::objects::{Anything, ConfigMap, Node, Secret, Service, ServiceCidr};
use super::universe::{self, Decision, Move};
use super::{Cluster, Target, nodes, secret, service};

/// How long to wait before looking again at something that others are about to do.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// After so long the Node says what its agent waits for: longer than the agents of a new cluster wait for each other.
const TELL_AFTER: Duration = Duration::from_secs(15);

/// How long an agent that could go on at once waits to hear whether it was removed. Its pods talk meanwhile.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);

/// What an agent was told by the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entered {
    /// The first split, if this agent had no ring and takes the cluster's decision.
    pub founding: Option<Founding>,
    /// Where the other peers are.
    pub targets: Vec<Target>,
    /// The file with the cluster's secret, unless another was given.
    pub secret_file: Option<PathBuf>,
    /// This peer was removed for good while it was away: it must not take part, and begin anew.
    pub removed: bool,
}

/// Why a step is not done.
enum Halt {
    /// Others have to do something.
    Wait(String),
    /// The API server could not be asked.
    Failed(ApiError),
}

impl From<ApiError> for Halt {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// An agent on its way in.
pub(super) struct Entrance<'a> {
    cluster: &'a Cluster,
    /// Since when what is to be found has been missing.
    secret_missing: Option<Instant>,
    universe_missing: Option<Instant>,
    /// Since when others have been waited for, and what the Node says of it.
    waiting: Option<Instant>,
    told: Option<String>,
}

impl<'a> Entrance<'a> {
    pub(super) const fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, secret_missing: None, universe_missing: None, waiting: None, told: None }
    }

    /// Does what must be done, for as long as it takes; `waiting` hears of everything that is waited for.
    pub(super) async fn enter(mut self, mut waiting: impl FnMut(String)) -> Entered {
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        let mut nodes = self.cluster.nodes.clone();
        loop {
            let pause = match self.try_once().await {
                Ok(entered) => return entered,
                Err(Halt::Wait(why)) => {
                    backoff.succeed();
                    self.tell(&why).await;
                    waiting(why);
                    LOOK_AGAIN.mul_f64(rng.random_range(0.5..1.5))
                }
                // Another agent has just created it: it is read at once.
                Err(Halt::Failed(error)) if error.kind == Kind::Conflict => LOOK_AGAIN / 10,
                Err(Halt::Failed(error)) => {
                    waiting(format!("waiting for the Kubernetes API: {error}"));
                    backoff.fail(error.kind.asked(), &mut rng)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                // Whoever follows the Nodes lives as long as the cluster.
                Ok(()) = nodes.changed() => {}
            }
        }
    }

    /// Has the Node say what is waited for, once that is more than a start in good order.
    async fn tell(&mut self, why: &str) {
        let since = *self.waiting.get_or_insert_with(Instant::now);
        if since.elapsed() < TELL_AFTER || self.told.as_deref() == Some(why) {
            return;
        }
        match self.cluster.tell_waiting(why).await {
            Ok(()) => self.told = Some(why.to_owned()),
            Err(error) => tracing::debug!(%error, "what is waited for was not told"),
        }
    }

    async fn try_once(&mut self) -> Result<Entered, Halt> {
        let copy = self.cluster.secret_copy.clone();
        let known = copy.as_ref().is_none_or(|copy| copy.is_file());
        if self.cluster.has_ring && known {
            let removed = self.was_removed().await;
            return Ok(Entered { secret_file: copy, removed, ..Entered::default() });
        }
        let nodes = self.nodes()?;
        self.register(&nodes).await?;
        self.check_services().await?;
        let secret_file = match copy {
            Some(copy) => {
                self.secret(&nodes, &copy).await?;
                Some(copy)
            }
            None => None,
        };
        let founding =
            if self.cluster.is_decided_by_object() { Some(self.universe(&nodes).await?) } else { None };
        let targets = self.cluster.targets(&nodes).into_iter().collect();
        Ok(Entered { founding, targets, secret_file, removed: false })
    }

    /// Whether the cluster says that this peer was removed for good.
    async fn was_removed(&self) -> bool {
        let Cluster { api, namespace, name, .. } = self.cluster;
        let place = Place::config_maps(namespace);
        let asked = timeout(FENCE_PATIENCE, api.get::<ConfigMap>(&place, universe::NAME)).await;
        matches!(asked, Ok(Ok(Some(found))) if universe::is_removed(&found, *name))
    }

    /// The Nodes as they are now, this one among them.
    fn nodes(&self) -> Result<BTreeMap<String, Node>, Halt> {
        let view = self.cluster.nodes.borrow();
        let Some(nodes) = view.current() else {
            let why = view.trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"));
            return Err(Halt::Wait(format!("waiting for the Kubernetes API{why}")));
        };
        let own = &self.cluster.node;
        if !nodes.contains_key(own) {
            return Err(Halt::Wait(format!(
                "waiting for the Node {own}, which the API server does not know: NODE_NAME (or --node-name) must be \
                 the Node's name"
            )));
        }
        Ok(nodes.clone())
    }

    async fn register(&self, nodes: &BTreeMap<String, Node>) -> Result<(), Halt> {
        let Cluster { node: own, name, .. } = self.cluster;
        let found = nodes.get(own).map(|node| node.metadata.annotations.clone()).unwrap_or_default();
        // Without a ring this peer is in no universe, whatever the one before it on this Node was in.
        let universe = if self.cluster.has_ring { found.universe.clone() } else { None };
        let Some(patch) = nodes::entry(&found, *name, universe.as_deref()) else { return Ok(()) };
        let _: Anything = self.cluster.api.patch(&Place::nodes(), own, Change::Status, &patch).await?;
        tracing::info!("This Node, {own}, names {name} as its peer");
        Ok(())
    }

    async fn check_services(&self) -> Result<(), Halt> {
        let api = &self.cluster.api;
        let found: Option<Service> = api.get(&Place::services("default"), "kubernetes").await?;
        let cidrs = match api.page::<ServiceCidr>(&Place::service_cidrs(), None, None).await {
            Ok(page) => page.items,
            // Clusters before 1.33 have no such objects.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Forbidden) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        match service::overlap(self.cluster.range, found.as_ref(), &cidrs) {
            Some(refusal) => Err(Halt::Wait(refusal)),
            None => Ok(()),
        }
    }

    /// Sees that the copy holds what the Secret says, and that there is a Secret.
    async fn secret(&mut self, nodes: &BTreeMap<String, Node>, copy: &std::path::Path) -> Result<(), Halt> {
        let place = Place::secrets(&self.cluster.namespace);
        let found: Option<Secret> = self.cluster.api.get(&place, secret::NAME).await?;
        let text = match found {
            Some(found) => secret::read(&found).map_err(Halt::Wait)?,
            None => {
                let now = Instant::now();
                let since = *self.secret_missing.get_or_insert(now);
                let text = match std::fs::read_to_string(copy) {
                    Ok(text) => text,
                    Err(_) => {
                        if let Some(why) = secret::reason_to_wait(nodes, &self.cluster.node, since, now) {
                            return Err(Halt::Wait(why));
                        }
                        secret::random().map_err(|error| Halt::Wait(error.to_owned()))?
                    }
                };
                // Whoever is second reads what the first has written.
                let _: Anything = self.cluster.api.create(&place, &secret::object(&text)).await?;
                tracing::info!("Created the Secret {} with the cluster's secret", secret::NAME);
                text
            }
        };
        secret::write(copy, &text)
            .map_err(|error| Halt::Wait(format!("cannot write the secret to {}: {error}", copy.display())))
    }

    /// The first split, as the object says, or as this agent decides if it is the first to.
    async fn universe(&mut self, nodes: &BTreeMap<String, Node>) -> Result<Founding, Halt> {
        let Cluster { api, namespace, node: own, name, range, .. } = self.cluster;
        let place = Place::config_maps(namespace);
        let found: Option<ConfigMap> = api.get(&place, universe::NAME).await?;
        if let Some(found) = found {
            let decision = Decision::read(&found, *range).map_err(|error| Halt::Wait(error.to_string()))?;
            return Ok(decision.founding());
        }
        let now = Instant::now();
        let since = *self.universe_missing.get_or_insert(now);
        let founders = match universe::next_move(nodes, own, *name, since, now) {
            Move::Wait(why) => return Err(Halt::Wait(why)),
            Move::Found(founders) => founders,
        };
        let mut nonce = [0; 8];
        aws_lc_rs::rand::fill(&mut nonce)
            .map_err(|_| Halt::Wait("the system has no random numbers".to_owned()))?;
        let founding = Founding { founders, nonce: u64::from_ne_bytes(nonce) };
        let object = Decision::new(*range, founding.clone()).object(&BTreeMap::new());
        let _: Anything = api.create(&place, &object).await?;
        tracing::info!(
            "Created the ConfigMap {}: the range is shared out at first among its founders",
            universe::NAME
        );
        Ok(founding)
    }
}
