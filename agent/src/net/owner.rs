//! The thread that owns the node's kernel state.
//!
//! It waits for four things: a newer state, a request, a notification from the kernel, and the clock. Whatever comes,
//! it ends in the same place, [`Owner::reconcile`]. While nothing happens it wakes once a second to read one number
//! (the nftables generation, in case a notification of a change to our tables was never sent), and twice a minute to
//! look at everything.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weave_proto::local::cni::PodPort;

use super::desired::{self, Desired};
use super::names::{BRIDGE, Mac};
use super::netlink::Kernel;
use super::node::{Facts, Health, NodeSettings};
use super::observe::Observed;
use super::plan::{Plan, Step, concerning, plan};
use super::pods::Pods;
use super::probe::{self, Verdict};
use super::sysctl::Sysctls;
use super::watch::{FirewallWatch, Interest, Watch};
use super::{ForwardAccept, NetError, NodeState};
use crate::firewall::foreign::{self, ForwardChain};
use crate::firewall::{self, Counters};

/// How often the nftables generation is read.
const GENERATION_POLL: Duration = Duration::from_secs(1);
/// How often everything is looked at without a reason: settings that the kernel does not announce are back by then.
const FULL_CHECK: Duration = Duration::from_secs(30);
/// How long after a notification the look is taken: changes come in bursts (`ip link del` is a dozen).
const DEBOUNCE: Duration = Duration::from_millis(250);
/// How long after a notification the tables are looked at: `nft flush ruleset` is one transaction and one burst, and
/// until the tables are back nothing guards the pods' ports.
const FIREWALL_DEBOUNCE: Duration = Duration::from_millis(20);
/// The least time between two such looks, so that a fight with another program does not keep a processor busy.
const FIREWALL_PACE: Duration = Duration::from_millis(250);
/// How soon something that could not be applied is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Looks in one go: the first finds what to do, the second what the kernel threw away meanwhile (a changed MAC address
/// flushes neighbours), the last that nothing is left. What is left then waits for the next retry, so that a fight
/// with another program does not keep a processor busy.
const LOOKS: usize = 3;
/// Requests handled in one go: as many pods are admitted at the guard in one transaction.
const BATCH: usize = 128;

/// A request to the owner.
#[derive(Debug)]
pub(super) enum Command {
    Attach { pod: PodPort, reply: Asker },
    Detach { port: String, reply: Asker },
    Check { pod: PodPort, reply: Asker },
    Counters { reply: oneshot::Sender<Result<Counters, NetError>> },
    Settle { reply: Asker },
}

/// Whoever waits for something to be done.
type Asker = oneshot::Sender<Result<(), NetError>>;

/// The owner's ends of the channels.
pub(super) struct Ends {
    pub(super) newest: watch::Receiver<Option<Arc<NodeState>>>,
    pub(super) queue: mpsc::Receiver<Command>,
    pub(super) facts: watch::Sender<Option<Facts>>,
    pub(super) health: watch::Sender<Health>,
}

/// Starts the thread, and waits until its sockets are open.
pub(super) fn start(settings: NodeSettings, ends: Ends) -> Result<(), NetError> {
    let (opened, result) = std::sync::mpsc::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _starter_waits = opened.send(Err(NetError::Socket { what: "event", error }));
                return;
            }
        };
        runtime.block_on(async move {
            match Owner::open(&settings, ends) {
                Ok(owner) => {
                    let _starter_waits = opened.send(Ok(()));
                    owner.run().await;
                }
                Err(error) => {
                    let _starter_waits = opened.send(Err(error));
                }
            }
        });
    };
    std::thread::Builder::new()
        .name("weave-net".to_owned())
        .spawn(body)
        .map_err(|error| NetError::Socket { what: "thread", error })?;
    result.recv().unwrap_or(Err(NetError::Ended))
}

struct Owner {
    kernel: Kernel,
    watch: Watch,
    firewall_watch: FirewallWatch,
    ends: Ends,
    state: Option<Arc<NodeState>>,
    pods: Pods,
    interest: Interest,
    /// The nftables generation as of the last look.
    generation: Option<u32>,
    /// Whether the newest state was in force after the last look: what differs at the next one was changed by
    /// somebody else.
    in_force: bool,
    repairs: u64,
    problems: Vec<String>,
    /// Addresses of pods that were detached, whose connections are still to be forgotten.
    left: BTreeSet<IpAddr>,
    next_poll: Instant,
    /// When to look at the tables that somebody has changed, and when that was last done.
    firewall_look: (Option<Instant>, Instant),
    next_check: Instant,
    retry_pause: Duration,
    /// The chains of others when a probe was last sent, and what came of it.
    foreign: (Vec<ForwardChain>, Option<String>),
}

/// What ended a wait.
enum Wake {
    State,
    Commands(Vec<Command>),
    Changed,
    FirewallChanged,
    Poll,
    End,
}

impl Owner {
    fn open(settings: &NodeSettings, ends: Ends) -> Result<Self, NetError> {
        let kernel = Kernel::open(Sysctls::new(&settings.sysctl_root))?;
        let firewall_watch = FirewallWatch::open(kernel.netfilter_port())?;
        Ok(Self {
            kernel,
            firewall_watch,
            watch: Watch::open()?,
            ends,
            state: None,
            pods: Pods::default(),
            interest: Interest::default(),
            generation: None,
            in_force: false,
            repairs: 0,
            problems: Vec::new(),
            left: BTreeSet::new(),
            next_poll: Instant::now(),
            firewall_look: (None, Instant::now()),
            next_check: Instant::now(),
            retry_pause: RETRY.0,
            foreign: (Vec::new(), None),
        })
    }

    async fn run(mut self) {
        loop {
            match self.wait().await {
                Wake::End => return,
                Wake::State => self.take_state(),
                Wake::Commands(commands) => self.serve(commands),
                // More of the same burst is on its way; the next wake sees it whole.
                Wake::Changed => self.next_check = self.next_check.min(Instant::now() + DEBOUNCE),
                Wake::FirewallChanged => self.soon_look_at_firewall(),
                Wake::Poll => {}
            }
            // Asked after every wake, so that many requests cannot keep the owner from looking.
            if self.state.is_some() && Instant::now() >= self.next_look() {
                self.poll();
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        if self.state.is_none() {
            // Nothing to compare with yet: only a first state (or a request, to be refused) matters.
            return tokio::select! {
                changed = self.ends.newest.changed() => changed.map_or(Wake::End, |()| Wake::State),
                commands = take(&mut self.ends.queue) => commands.map_or(Wake::End, Wake::Commands),
            };
        }
        let next_look = self.next_look();
        tokio::select! {
            biased;
            changed = self.ends.newest.changed() => changed.map_or(Wake::End, |()| Wake::State),
            commands = take(&mut self.ends.queue) => commands.map_or(Wake::End, Wake::Commands),
            () = tokio::time::sleep_until(next_look) => Wake::Poll,
            () = self.watch.changed(&self.interest) => Wake::Changed,
            () = self.firewall_watch.changed() => Wake::FirewallChanged,
        }
    }

    fn take_state(&mut self) {
        let newest = self.ends.newest.borrow_and_update().clone();
        let Some(state) = newest.filter(|newest| self.state.as_ref() != Some(newest)) else { return };
        let before = self.pods.current();
        self.pods.list(&state.pods, Instant::now());
        let after: BTreeSet<IpAddr> = self.pods.current().iter().map(|pod| pod.address).collect();
        self.left.extend(before.iter().map(|pod| pod.address).filter(|address| !after.contains(address)));
        self.state = Some(state);
        self.in_force = false;
        self.reconcile();
    }

    fn next_look(&self) -> Instant {
        let next = self.next_poll.min(self.next_check);
        self.firewall_look.0.map_or(next, |look| look.min(next))
    }

    fn soon_look_at_firewall(&mut self) {
        let (next, last) = &mut self.firewall_look;
        next.get_or_insert((Instant::now() + FIREWALL_DEBOUNCE).max(*last + FIREWALL_PACE));
    }

    fn poll(&mut self) {
        self.forget_connections();
        self.next_poll = Instant::now() + GENERATION_POLL;
        if self.firewall_look.0.is_some_and(|look| look <= Instant::now()) {
            self.firewall_look = (None, Instant::now());
        }
        let due = Instant::now() >= self.next_check;
        if due || (self.kernel.generation().ok() != self.generation && self.firewall_differs()) {
            self.reconcile();
        }
    }

    /// Forgets the connections of pods that left, whose addresses may be given out again.
    fn forget_connections(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.kernel.forget_connections(&left);
    }

    /// Whether our tables are not as wanted. Transactions of others (kube-proxy's are many) end here.
    fn firewall_differs(&mut self) -> bool {
        let generation = self.kernel.generation().ok();
        let (Some(desired), Ok(observed)) = (self.desired(), self.kernel.observe_firewall()) else {
            return true;
        };
        let same = firewall::admissions(&desired.firewall, &observed).next().is_none()
            && firewall::expulsions(&desired.firewall, &observed).next().is_none();
        if same {
            self.generation = generation;
        }
        !same
    }

    fn desired(&self) -> Option<Desired> {
        let mut state = NodeState::clone(self.state.as_deref()?);
        state.pods = self.pods.current();
        desired::desired(&state).ok()
    }

    fn serve(&mut self, commands: Vec<Command>) {
        // A request may depend on a state that was set just before it.
        if self.ends.newest.has_changed().unwrap_or(false) {
            self.take_state();
        }
        // Neighbours of one kind are done together; their order is kept where it matters, between the kinds.
        let (mut attaching, mut detaching) = (Vec::new(), Vec::new());
        for command in commands {
            if !matches!(command, Command::Attach { .. }) {
                self.attach(std::mem::take(&mut attaching));
            }
            if !matches!(command, Command::Detach { .. }) {
                self.detach(std::mem::take(&mut detaching));
            }
            // Whoever asked may have gone away; then nobody reads the answer.
            match command {
                Command::Attach { pod, reply } => attaching.push((pod, reply)),
                Command::Detach { port, reply } => detaching.push((port, reply)),
                Command::Check { pod, reply } => {
                    let _asker_gone = reply.send(self.check(&pod));
                }
                Command::Counters { reply } => {
                    let _asker_gone = reply.send(self.kernel.counters());
                }
                Command::Settle { reply } => {
                    let _asker_gone = reply.send(self.settled());
                }
            }
        }
        self.attach(attaching);
        self.detach(detaching);
    }

    fn settled(&self) -> Result<(), NetError> {
        match (&self.state, self.problems.first()) {
            (None, _) => Err(NetError::NotReady),
            (Some(_), Some(problem)) => Err(NetError::BadState(problem.clone())),
            (Some(_), None) => Ok(()),
        }
    }

    fn attach(&mut self, asked: Vec<(PodPort, Asker)>) {
        let (mut pods, mut replies) = (Vec::new(), Vec::new());
        for (pod, reply) in asked {
            match self.refusal(&pod) {
                Some(error) => {
                    let _asker_gone = reply.send(Err(error));
                }
                None => {
                    self.pods.attach(&pod);
                    pods.push(pod);
                    replies.push(reply);
                }
            }
        }
        if pods.is_empty() {
            return;
        }
        if pods.iter().any(|pod| self.left.contains(&pod.address)) {
            self.forget_connections();
        }
        let mut results = self.put_in_force(&pods);
        for (pod, result) in pods.iter().zip(&mut results) {
            match result {
                Ok(()) => {
                    self.interest.links.extend(self.kernel.index(&pod.host_interface));
                    self.interest.neighbours.insert(pod.address);
                }
                Err(_) => {
                    self.pods.detach(&pod.host_interface, Instant::now());
                }
            }
        }
        if results.iter().any(Result::is_err) {
            // Takes back what the failed ones left.
            self.in_force = false;
            self.reconcile();
        }
        self.welcome_guests(&pods, &mut results);
        for (reply, result) in replies.into_iter().zip(results) {
            let _asker_gone = reply.send(result);
        }
    }

    /// What a guest needs beyond a port (a route of its own, translation) is made the long way: guests are rare.
    fn welcome_guests(&mut self, pods: &[PodPort], results: &mut [Result<(), NetError>]) {
        if !self.any_guest(pods) {
            return;
        }
        self.in_force = false;
        self.reconcile();
        for (pod, result) in pods.iter().zip(results).filter(|(_, result)| result.is_ok()) {
            *result = self.check(pod);
            if result.is_err() {
                self.pods.detach(&pod.host_interface, Instant::now());
            }
        }
    }

    fn any_guest(&self, pods: &[PodPort]) -> bool {
        let universe = self.state.as_ref().map(|state| state.universe);
        universe.is_some_and(|universe| pods.iter().any(|pod| desired::is_guest(universe, pod)))
    }

    fn check(&mut self, pod: &PodPort) -> Result<(), NetError> {
        let mut state = NodeState::clone(self.state.as_deref().ok_or(NetError::NotReady)?);
        state.pods = self.pods.current();
        state.pods.retain(|other| other.host_interface != pod.host_interface);
        state.pods.push(pod.clone());
        let desired = desired::desired(&state)?;
        let observed = self.kernel.observe(&desired)?;
        let incomplete = |missing| NetError::PortIncomplete { port: pod.host_interface.clone(), missing };
        if !observed.links.contains_key(&pod.host_interface) {
            return Err(incomplete("make the interface, which does not exist".to_owned()));
        }
        let steps = plan(&desired, &observed).steps;
        let missing: Vec<String> = concerning(&steps, pod, desired.firewall.facts.mac)
            .into_iter()
            .map(ToString::to_string)
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(incomplete(missing.join(", "))) }
    }

    fn refusal(&self, pod: &PodPort) -> Option<NetError> {
        let Some(state) = &self.state else { return Some(NetError::NotReady) };
        desired::unusable_pod(state.universe, pod).map(NetError::BadState)
    }

    /// The short way, and if that fails because something of ours is missing, the long way and once more.
    fn put_in_force(&mut self, pods: &[PodPort]) -> Vec<Result<(), NetError>> {
        let Some(state) = self.state.clone() else {
            return pods.iter().map(|_| Err(NetError::NotReady)).collect();
        };
        let (source, gateway) = (state.address, Mac(state.name.mac()));
        let mut admitted = self.kernel.admit(pods, gateway);
        if admitted.is_err() || self.kernel.index(BRIDGE).is_none() {
            self.reconcile();
            admitted = self.kernel.admit(pods, gateway);
        }
        if let Err(error) = admitted {
            let text = error.to_string();
            return pods.iter().map(|_| Err(NetError::Firewall(text.clone()))).collect();
        }
        let mut results = self.kernel.open_ports(pods, source);
        if results.iter().any(Result::is_err) {
            self.reconcile();
            results = self.kernel.open_ports(pods, source);
            for (pod, result) in pods.iter().zip(&mut results).filter(|(_, result)| result.is_err()) {
                // A route that the long way has made is refused the second time.
                if self.check(pod).is_ok() {
                    *result = Ok(());
                }
            }
        }
        results
    }

    fn detach(&mut self, asked: Vec<(String, Asker)>) {
        let now = Instant::now();
        let gone: Vec<PodPort> = asked.iter().filter_map(|(port, _)| self.pods.detach(port, now)).collect();
        // Later, since whoever asked need not wait for it.
        self.left.extend(gone.iter().map(|pod| pod.address));
        let gateway = self.state.as_ref().map(|state| Mac(state.name.mac()));
        let withdrawn =
            gone.is_empty() || gateway.is_none_or(|gateway| self.kernel.withdraw(&gone, gateway).is_ok());
        if !withdrawn || self.any_guest(&gone) {
            // Something of it was missing, or there is more of it than a port. The long way finds out what is left.
            self.in_force = false;
            self.reconcile();
        } else {
            // A look between the end of a pod's link and this request found the port wanting; it is wanted no more.
            self.problems.retain(|problem| !asked.iter().any(|(port, _)| problem.contains(port)));
        }
        for (port, reply) in asked {
            let problem = self.problems.iter().find(|problem| problem.contains(&port));
            let result = problem.map_or(Ok(()), |problem| Err(NetError::BadState(problem.clone())));
            let _asker_gone = reply.send(result);
        }
    }

    /// Looks, plans, executes, and looks again.
    fn reconcile(&mut self) {
        let Some(state) = self.state.clone() else { return };
        let mut state = NodeState::clone(&state);
        state.pods = self.pods.current();
        let problems = match desired::desired(&state) {
            Ok(desired) => self.apply(&desired),
            Err(error) => vec![error.to_string()],
        };
        if problems.is_empty() {
            self.mind_foreign_firewalls(&state);
        }
        self.conclude(problems);
    }

    /// Finds out whether others drop what is forwarded, when their chains are not as they were.
    fn mind_foreign_firewalls(&mut self, state: &NodeState) {
        let Ok(chains) = self.kernel.forward_chains() else { return };
        if chains == self.foreign.0 || state.address.is_none() {
            return;
        }
        let used = state.pods.iter().map(|pod| pod.address).chain(state.address).collect();
        let mut dropped = !chains.is_empty() && self.probe(state, &used);
        if dropped && state.options.forward_accept == ForwardAccept::Auto {
            match foreign::accept(&chains) {
                Ok(rules) => {
                    for rule in &rules {
                        tracing::info!(%rule, "a foreign firewall dropped what is forwarded for pods");
                    }
                    dropped = rules.is_empty() || self.probe(state, &used);
                }
                Err(error) => tracing::warn!(%error, "cannot accept forwarded packets in a foreign firewall"),
            }
        }
        let complaint = dropped.then(|| foreign::complaint(state.universe, &chains));
        if let Some(complaint) = complaint.as_ref().filter(|_| complaint != self.foreign.1) {
            tracing::warn!(%complaint, "pods cannot be reached");
        }
        // With our rules the chains are others than before, which is no reason to ask again.
        let chains = self.kernel.forward_chains().unwrap_or(chains);
        self.foreign = (chains, complaint);
    }

    fn probe(&mut self, state: &NodeState, used: &BTreeSet<IpAddr>) -> bool {
        match probe::probe(&mut self.kernel, &state.own, used) {
            Ok(verdict) => verdict == Verdict::Dropped,
            Err(error) => {
                tracing::debug!(%error, "cannot probe whether packets are forwarded");
                false
            }
        }
    }

    fn apply(&mut self, desired: &Desired) -> Vec<String> {
        let mut errors: Vec<NetError> = Vec::new();
        for look in 1..=LOOKS {
            // What is heard of before the look is seen in it.
            self.watch.drain(&self.interest);
            self.firewall_watch.drain();
            self.generation = self.kernel.generation().ok();
            let observed = match self.kernel.observe(desired) {
                Ok(observed) => observed,
                Err(error) => return vec![error.to_string()],
            };
            self.interested_in(desired);
            let Plan { steps, conflicts } = plan(desired, &observed);
            if steps.is_empty() || look == LOOKS {
                self.publish_facts(desired, &observed);
                if steps.is_empty() {
                    // What failed was overtaken: a pod left between the look and the step.
                    errors.clear();
                }
                let left: Vec<_> = left(&steps, &errors).map(|step| format!("still to do: {step}")).collect();
                let conflicts =
                    conflicts.into_iter().map(|(object, reason)| NetError::Foreign { object, reason });
                let problems = errors.into_iter().chain(conflicts).map(|error| error.to_string());
                return problems.chain(left).chain(desired.left_out.iter().cloned()).collect();
            }
            self.log_steps(&steps);
            errors = self.kernel.execute(&steps);
        }
        Vec::new()
    }

    fn log_steps(&mut self, steps: &[Step]) {
        if self.in_force {
            self.repairs += 1;
        }
        for step in steps {
            if self.in_force {
                tracing::warn!(%step, "putting back what somebody changed");
            } else {
                tracing::debug!(%step, "changing the node's network");
            }
        }
    }

    fn interested_in(&mut self, desired: &Desired) {
        let names = desired.links.keys().copied().chain(desired.ports.keys().map(String::as_str));
        let indices = self.kernel.indices();
        let links: BTreeSet<u32> = names.filter_map(|name| indices.get(name).copied()).collect();
        let neighbours = desired.neighbours.keys().map(|&(_, address)| address).collect();
        self.interest = Interest { links, neighbours };
    }

    fn publish_facts(&self, desired: &Desired, observed: &Observed) {
        let bridge = desired.links.get(BRIDGE).zip(observed.links.get(BRIDGE));
        let facts = bridge.map(|(wanted, found)| Facts {
            bridge_index: found.index,
            bridge_mac: Mac(wanted.mac.0),
            address: desired.firewall.facts.address,
            mtu: wanted.mtu,
            universe: desired.universe,
        });
        self.ends.facts.send_if_modified(|published| {
            let modified = *published != facts;
            *published = facts;
            modified
        });
    }

    fn conclude(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(%problem, "the node's network is not as it should be");
        }
        self.in_force = problems.is_empty();
        self.retry_pause = if self.in_force { RETRY.0 } else { (self.retry_pause * 2).min(RETRY.1) };
        self.next_check = Instant::now() + if self.in_force { FULL_CHECK } else { self.retry_pause };
        self.problems.clone_from(&problems);
        let foreign_firewall = self.foreign.1.clone();
        let health = Health { in_force: self.in_force, problems, repairs: self.repairs, foreign_firewall };
        self.ends.health.send_if_modified(|published| {
            let modified = *published != health;
            *published = health;
            modified
        });
    }
}

/// The steps that are still to be told: a link that could not be made is an error already, and so all that needs it.
fn left<'a>(steps: &'a [Step], errors: &[NetError]) -> impl Iterator<Item = &'a Step> {
    let made = |step: &Step| {
        matches!(step, Step::CreateLink { .. }).then(|| step.link()).flatten().map(str::to_owned)
    };
    let not_made: BTreeSet<String> =
        if errors.is_empty() { BTreeSet::new() } else { steps.iter().filter_map(made).collect() };
    steps.iter().filter(move |step| step.link().is_none_or(|link| !not_made.contains(link)))
}

/// The requests that wait, at least one; none when nobody can ask any more.
async fn take(queue: &mut mpsc::Receiver<Command>) -> Option<Vec<Command>> {
    let mut commands = Vec::new();
    match queue.recv_many(&mut commands, BATCH).await {
        0 => None,
        _ => Some(commands),
    }
}
