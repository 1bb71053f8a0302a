//! The loop: wait for news, feed the router, have its outputs performed in their order.
//!
//! ```text
//!   peers ─┐                                            ┌─> store   (Persist, merged, durable)
//!   cni   ─┤   Input    ┌────────┐  Effect   ┌──────────┐├─> peers   (Send, Dial, Close)
//!   cli   ─┼──────────> │ brain  │ ────────> │ performer ├─> kernel  (Publish, newest wins)
//!   names ─┤            └────────┘           └──────────┘├─> names   (Resolve)
//!   clock ─┘                │ snapshot                   └─> callers (Reply)
//!                           v
//!                     status readers
//! ```
//!
//! Two tasks. The **brain** owns the router and waits for no disk, socket or kernel, so a slow disk delays answers but
//! not the mesh. The **performer** ([`mod@performer`]) takes every effect that is queued, commits all their `Persist` in
//! one transaction, and only then performs the rest in order. Committing earlier than the queue demands is safe, later
//! would not be; so a hundred pods that start together share a few commits.
//!
//! A caller's request carries the caller's own channel; a caller that has gone away is noticed and its request
//! cancelled. A budget per turn keeps a flood of messages from delaying the clock.

mod handle;
mod log;
mod performer;
pub mod snapshot;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use weave_ipam::{Answer, Request, RequestError, RequestId};
use weave_router::{Output, Router};
use weave_topology::Target;

use crate::dataplane::driver::{Order, Report};
use crate::peer::PeerEvent;

pub use handle::{AskError, BrainHandle};
pub use performer::{Doers, Effect, performer};
pub use snapshot::{Fixed, StatusReceiver};

/// How many inputs are taken before outputs are performed: enough to merge a burst of requests, few enough that a
/// flood of gossip does not hold up the clock.
const INPUTS_PER_TURN: usize = 64;

/// The least time between two status documents that nobody waits for: a document of a thousand addresses takes a while
/// to build, and nobody reads more than a few a second.
const SNAPSHOT_PACE: Duration = Duration::from_millis(50);

/// The least time between two of them in terms of what one takes to build, up to [`FIGURES_PACE`]: so they take a
/// twentieth of the time at most, unless one takes a tenth of a second.
const SNAPSHOT_SHARE: u32 = 20;

/// The least time between two documents where only figures have changed: probes are answered all the time, and each
/// document costs as much as many probes.
const FIGURES_PACE: Duration = Duration::from_secs(2);

/// Answers one request.
pub type Caller = oneshot::Sender<Result<Answer, RequestError>>;

/// Everything that can happen to the brain.
pub enum Input {
    /// News of a link.
    Peer(PeerEvent),
    /// A name was looked up, or could not be.
    Resolved(Target, Result<Vec<std::net::SocketAddr>, String>),
    /// Somebody wants something of the allocator.
    Request(Request, Caller),
    /// People want these peers reached too, or (`replace`) these only. Answered when durable.
    Connect {
        /// Where.
        targets: Vec<Target>,
        /// Whether all earlier targets are dropped.
        replace: bool,
        /// Told when the change is durable.
        done: oneshot::Sender<()>,
    },
    /// People no longer want these peers reached. Answered when durable.
    Forget {
        /// Which.
        targets: Vec<Target>,
        /// Told when the change is durable.
        done: oneshot::Sender<()>,
    },
    /// Somebody wants to know everything given out on this node.
    List(oneshot::Sender<Vec<weave_ipam::Allocation>>),
    /// News of the data plane.
    Tunnel(Report),
    /// Something that the status shows has changed outside the brain.
    Refresh,
}

/// The brain: owns the router, and knows who waits for which answer.
pub struct Brain {
    router: Router,
    inputs: mpsc::Receiver<Input>,
    effects: mpsc::Sender<Vec<Effect>>,
    callers: BTreeMap<u64, Caller>,
    next_request: u64,
    snapshots: snapshot::Publisher,
}

impl Brain {
    /// A brain around a router that has just been made; [`Self::run`] performs its first outputs.
    #[must_use]
    pub fn new(
        router: Router,
        inputs: mpsc::Receiver<Input>,
        effects: mpsc::Sender<Vec<Effect>>,
        snapshots: snapshot::Publisher,
    ) -> Self {
        Self { router, inputs, effects, callers: BTreeMap::new(), next_request: 1, snapshots }
    }

    /// Runs until every sender of inputs is gone or the performer has ended. May be dropped at any time: what has not
    /// been performed has not been promised.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(INPUTS_PER_TURN);
        loop {
            if self.perform(Vec::new()).await.is_err() {
                return;
            }
            let wake = self.wake_at();
            tokio::select! {
                taken = self.inputs.recv_many(&mut batch, INPUTS_PER_TURN) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            let mut told = Vec::new();
            for input in batch.drain(..) {
                self.take(input, &mut told, now);
            }
            if self.router.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.router.handle_timeout(now);
            }
            self.drop_cancelled(now);
            if self.perform(told).await.is_err() {
                return;
            }
        }
    }
}

impl Brain {
    fn wake_at(&self) -> Option<Instant> {
        let router = self.router.poll_timeout().map(|(at, _)| at);
        [router, self.snapshots.due()].into_iter().flatten().min()
    }

    fn take(&mut self, input: Input, told: &mut Vec<oneshot::Sender<()>>, now: Instant) {
        match input {
            Input::Peer(PeerEvent::LinkUp(up)) => self.router.handle_link_up(*up, now),
            Input::Peer(PeerEvent::LinkDown { link, reason }) => {
                self.router.handle_link_down(link, reason, now);
            }
            Input::Peer(PeerEvent::DialFailed { dial, reason }) => {
                self.router.handle_dial_failed(dial, reason, now);
            }
            Input::Peer(PeerEvent::Refused { addr, reason }) => {
                self.router.handle_caller_refused(addr, &reason.text, now)
            }
            Input::Peer(PeerEvent::Message { link, message }) => {
                self.router.handle_message(link, message, now);
            }
            Input::Resolved(target, found) => self.router.handle_resolved(&target, found, now),
            Input::Request(request, caller) => {
                let id = self.next_request;
                self.next_request += 1;
                self.callers.insert(id, caller);
                self.router.handle_request(RequestId(id), request, now);
            }
            Input::Connect { targets, replace, done } => {
                self.router.connect(targets, replace, now);
                told.push(done);
            }
            Input::Forget { targets, done } => {
                self.router.forget(&targets, now);
                told.push(done);
            }
            // An asker that has gone away does not want the answer.
            Input::List(asker) => drop(asker.send(self.router.ipam().allocations().cloned().collect())),
            Input::Tunnel(Report::Offer(link, offer)) => self.router.send_offer(link, offer),
            Input::Tunnel(Report::Way(news)) => {
                self.router.handle_way(news, now);
                self.snapshots.mark_changed();
            }
            Input::Tunnel(Report::Answer(answer)) => {
                self.router.handle_probe_answer(answer, now);
                self.snapshots.mark_aged();
            }
            Input::Tunnel(Report::Traffic(peers)) => self.router.handle_traffic(&peers, now),
            Input::Tunnel(Report::Haste(peer)) => self.router.handle_haste(peer, now),
            Input::Tunnel(Report::Relayed(peers)) => self.router.handle_relayed(&peers, now),
            Input::Tunnel(Report::Counted(counted)) => self.snapshots.count(*counted),
            Input::Tunnel(Report::Routed(to, body)) => self.router.send_routed(to, body, now),
            Input::Refresh => self.snapshots.mark_changed(),
        }
    }

    /// Takes back the requests of callers that have gone away.
    fn drop_cancelled(&mut self, now: Instant) {
        let gone: Vec<u64> =
            self.callers.iter().filter(|(_, caller)| caller.is_closed()).map(|(&id, _)| id).collect();
        for id in gone {
            self.callers.remove(&id);
            self.router.handle_cancel(RequestId(id), now);
        }
    }

    /// Hands the router's outputs to the performer, `told` behind them, and publishes the status when it is time.
    async fn perform(&mut self, told: Vec<oneshot::Sender<()>>) -> Result<(), PerformerGone> {
        let mut effects = Vec::new();
        while let Some(output) = self.router.poll_output() {
            effects.extend(self.effect(output));
        }
        effects.extend(told.into_iter().map(Effect::Tell));
        // Probes alone change nothing but figures.
        if effects.iter().any(|effect| !matches!(effect, Effect::Tunnel(Order::Probe(_)))) {
            self.snapshots.mark_changed();
        } else if !effects.is_empty() {
            self.snapshots.mark_aged();
        }
        if shows_in_status(&effects) {
            self.snapshots.publish(&self.router, Instant::now());
        } else {
            self.snapshots.publish_if_due(&self.router, Instant::now());
        }
        if effects.is_empty() {
            return Ok(());
        }
        self.effects.send(effects).await.map_err(|_| PerformerGone)
    }

    fn effect(&mut self, output: Output) -> Option<Effect> {
        Some(match output {
            Output::Persist(ops) => Effect::Persist(ops),
            Output::Hello(hello) => Effect::Hello(hello),
            Output::Send { link, message } => Effect::Send(link, message),
            Output::Dial { dial, addr } => Effect::Dial(dial, addr),
            Output::Resolve(target) => Effect::Resolve(target),
            Output::Close { link, refusal } => Effect::Close(link, refusal),
            Output::Publish(view) => Effect::Publish(view),
            Output::Reply { request, result } => {
                Effect::Reply(self.callers.remove(&request.0)?, Box::new(result))
            }
            Output::Probe(probe) => Effect::Tunnel(Order::Probe(probe)),
            Output::Offer { link, peer, offer } => Effect::Tunnel(Order::Offer { link, peer, offer }),
            Output::Distant(distant) => Effect::Tunnel(Order::Distant(distant)),
            Output::Routed { from, body } => Effect::Tunnel(Order::Routed { from, body }),
            Output::Lost(allocations) => {
                log::lost(&allocations);
                return None;
            }
            Output::Rejoin => Effect::Rejoin,
            Output::Notify(notice) => {
                log::notice(&notice);
                // What is worth a line in the log is seen in the status.
                self.snapshots.mark_changed();
                return None;
            }
        })
    }
}

/// Whether somebody is answered that something has changed: whoever asks for the status after the answer must see it.
fn shows_in_status(effects: &[Effect]) -> bool {
    let changes = effects.iter().any(|effect| matches!(effect, Effect::Persist(_)));
    changes && effects.iter().any(|effect| matches!(effect, Effect::Reply(..) | Effect::Tell(_)))
}

/// The performer has ended, so nothing can be done any more.
struct PerformerGone;

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
