//! A node: a namespace with an uplink, a disk of its own and an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::{AgentOptions, AgentProcess, PROGRAMS, Place};
use crate::command::{self, Finished};
use crate::fingerprint;
use crate::lab::{BRIDGE, GATEWAY, Lab};
use crate::ns::{self, Netns};
use crate::pod::Pod;
use crate::wait::eventually;

/// The uplink's name in every node.
pub const UPLINK: &str = "eth0";
/// How long an agent may take until it gives out addresses, on a machine that is busy with other things.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// The exit code of a status that can be told though no pod can be attached.
const NOT_READY: i32 = 4;
/// The end of a log that a failure shows.
const LOG_LINES: usize = 40;

/// What a node is like.
#[derive(Debug, Clone)]
pub struct HostOptions {
    name: String,
    uplink: bool,
    mtu: u32,
    machine_id: Option<String>,
}

impl HostOptions {
    /// A node with an uplink of ordinary size.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), uplink: true, mtu: 1500, machine_id: None }
    }

    /// The same without an uplink, to be wired by hand ([`wire`]).
    #[must_use]
    pub const fn without_uplink(mut self) -> Self {
        self.uplink = false;
        self
    }

    /// The same on a machine that calls itself `id`.
    #[must_use]
    pub fn machine_id(mut self, id: &str) -> Self {
        self.machine_id = Some(id.to_owned());
        self
    }

    /// The same with an uplink of another size.
    #[must_use]
    pub const fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }
}

/// A node. Its namespace may go (power off) and come back; its disk stays.
#[derive(Debug)]
pub struct Host {
    tag: String,
    index: u8,
    options: HostOptions,
    folder: PathBuf,
    underlay: PathBuf,
    agent_program: PathBuf,
    pub(crate) shim_program: PathBuf,
    plugins: PathBuf,
    log_level: Option<String>,
    outlives: bool,
    namespace: Mutex<Option<Arc<Netns>>>,
    agent: Mutex<Option<AgentProcess>>,
    launched: Mutex<AgentOptions>,
    pids: Mutex<Vec<u32>>,
    pods: AtomicU32,
}

impl Host {
    pub(crate) fn new(lab: &Lab, index: u8, options: HostOptions) -> Result<Self> {
        let folder = lab.scratch().join(&options.name);
        std::fs::create_dir_all(folder.join("data")).context("making a node's folders")?;
        let settings = lab.settings();
        let host = Self {
            tag: lab.tag().to_owned(),
            index,
            folder,
            underlay: PathBuf::from(lab.underlay().name()),
            agent_program: settings.binaries.join("weave"),
            shim_program: settings.binaries.join("weave-net"),
            plugins: settings.plugins.clone(),
            log_level: settings.log_level.clone(),
            outlives: settings.keep,
            options,
            namespace: Mutex::default(),
            agent: Mutex::default(),
            launched: Mutex::default(),
            pids: Mutex::default(),
            pods: AtomicU32::new(0),
        };
        host.power_on()?;
        Ok(host)
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its address in the underlay.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, self.index)
    }

    /// Its namespace.
    ///
    /// # Errors
    /// The node is powered off.
    pub fn ns(&self) -> Result<Arc<Netns>> {
        lock(&self.namespace).clone().with_context(|| format!("{} is powered off", self.name()))
    }

    /// The folder of all its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its container runtimes look for CNI plugins.
    #[must_use]
    pub fn cni_bin_dir(&self) -> PathBuf {
        self.folder.join("cni-bin")
    }

    /// Where its container runtimes look for CNI networks.
    #[must_use]
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.folder.join("cni-conf")
    }

    /// The name of its control groups and the start of its pods' names.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}-{}", self.tag, self.name())
    }

    /// The folder of the agent's store.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder of the agent's sockets.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Everything that the agent printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file that the agent's output goes to.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Gives the node a namespace and an uplink; what is in memory only (the run folder) is empty.
    ///
    /// # Errors
    /// The node is on already.
    pub fn power_on(&self) -> Result<()> {
        let mut namespace = lock(&self.namespace);
        ensure!(namespace.is_none(), "{} is on already", self.name());
        let _ = std::fs::remove_dir_all(self.run_dir());
        std::fs::create_dir_all(self.run_dir()).context("making the run folder")?;
        let node = Netns::create(&format!("{}-{}", self.tag, self.name()))?;
        node.sysctl("net.ipv4.ip_forward", "1")?;
        if self.options.uplink {
            self.plug_in(&node)?;
        }
        *namespace = Some(Arc::new(node));
        Ok(())
    }

    /// The power cord: the agent is gone, and with the namespace every device, route and rule.
    ///
    /// # Errors
    /// The namespace cannot be deleted.
    pub fn power_off(&self) -> Result<()> {
        self.kill_if_running()?;
        let node = lock(&self.namespace).take().with_context(|| format!("{} is off already", self.name()))?;
        ns::delete(node.name())
    }

    /// Empties the node's disk: the store with its identity, ring and allocations.
    ///
    /// # Errors
    /// The agent runs, or the folder cannot be emptied.
    pub fn wipe(&self) -> Result<()> {
        ensure!(!self.is_running()?, "{} cannot be wiped under a running agent", self.name());
        std::fs::remove_dir_all(self.data_dir()).context("wiping the disk")?;
        std::fs::create_dir_all(self.data_dir()).context("making the store's folder")
    }

    /// Copies the disk of another node over this one's, as cloning a virtual machine does.
    ///
    /// # Errors
    /// An agent runs on either, or the files cannot be copied.
    pub fn clone_disk(&self, from: &Self) -> Result<()> {
        ensure!(!from.is_running()?, "the disk of {} is in use", from.name());
        self.wipe()?;
        let copy = format!("cp -a {}/. {}", from.data_dir().display(), self.data_dir().display());
        command::succeed(command::line(&copy), "").map(drop)
    }

    /// Starts the agent, and does not wait for anything.
    ///
    /// # Errors
    /// It runs already or cannot be started.
    pub fn launch(&self, options: &AgentOptions) -> Result<()> {
        ensure!(!self.is_running()?, "the agent of {} runs already", self.name());
        *lock(&self.launched) = options.clone();
        let own = self.label();
        let process = AgentProcess::start(
            &Place {
                name: self.name(),
                machine_id: self.options.machine_id.as_ref().unwrap_or(&own),
                namespace: &*self.ns()?,
                program: &self.agent_program,
                data: &self.data_dir(),
                run: &self.run_dir(),
                log: &self.log_file(),
                log_level: self.log_level.as_deref(),
                outlives: self.outlives,
            },
            options,
        )?;
        lock(&self.pids).push(process.pid());
        *lock(&self.agent) = Some(process);
        Ok(())
    }

    /// Starts the agent again with the flags it had.
    ///
    /// # Errors
    /// It runs already or cannot be started.
    pub fn relaunch(&self) -> Result<()> {
        let options = lock(&self.launched).clone();
        self.launch(&options)
    }

    /// Waits until `weave status` says by its exit code that a pod can be attached.
    ///
    /// # Errors
    /// It does not in time; the message holds what the agent waits for.
    pub fn wait_ready(&self) -> Result<()> {
        eventually(READY_PATIENCE, &format!("{} is ready", self.name()), || {
            self.ensure_running()?;
            self.weave(&["status"]).map(drop)
        })
    }

    /// Waits until this agent has an established connection to each of `peers`: pods can talk.
    ///
    /// # Errors
    /// It has not in time; the message holds the connections.
    pub fn wait_connected(&self, peers: &[&Self]) -> Result<()> {
        peers.iter().try_for_each(|peer| self.wait_state(peer, &["established"]))
    }

    /// Waits until this agent and each of `peers` have agreed to talk, though perhaps there are no addresses yet.
    ///
    /// # Errors
    /// They have not in time; the message holds the connections.
    pub fn wait_linked(&self, peers: &[&Self]) -> Result<()> {
        peers.iter().try_for_each(|peer| self.wait_state(peer, &["pending", "established"]))
    }

    fn wait_state(&self, peer: &Self, states: &[&str]) -> Result<()> {
        let address = format!("{}:", peer.address());
        eventually(READY_PATIENCE, &format!("{} is connected to {}", self.name(), peer.name()), || {
            let connections = self.status(&["connections"])?;
            let up = connections.as_array().into_iter().flatten().any(|connection| {
                connection["state"].as_str().is_some_and(|state| states.contains(&state))
                    && connection["address"].as_str().is_some_and(|shown| shown.starts_with(&address))
            });
            ensure!(up, "connections are {connections}");
            Ok(())
        })
    }

    /// Waits until the agent has ended by itself, and returns how and its log.
    ///
    /// # Errors
    /// It runs on.
    pub fn wait_ended(&self) -> Result<(ExitStatus, String)> {
        let status = eventually(READY_PATIENCE, &format!("the agent of {} ends", self.name()), || {
            self.ended()?.with_context(|| format!("it runs on; its log ends with: {}", tail(&self.log())))
        })?;
        Ok((status, self.log()))
    }

    /// The addresses that this agent has given out to containers, by container id.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn allocations(&self) -> Result<BTreeMap<String, String>> {
        let ipam = self.status(&["ipam"])?;
        let list = ipam["allocations"].as_array().with_context(|| format!("no allocations in {ipam}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list
            .iter()
            .map(|entry| (text(&entry["container"]), text(&entry["address"])))
            .filter(|(container, _)| !container.starts_with("weave:"))
            .collect())
    }

    /// What a person would compare to see whether the node is as it was: links, addresses, routes, neighbours,
    /// forwarding entries, rules and switches, without anything that counts or is numbered.
    ///
    /// # Errors
    /// A tool fails.
    pub fn fingerprint(&self) -> Result<BTreeSet<String>> {
        fingerprint::of(&*self.ns()?)
    }

    /// Whether the agent runs.
    ///
    /// # Errors
    /// Its process cannot be looked after.
    pub fn is_running(&self) -> Result<bool> {
        lock(&self.agent).as_mut().map_or(Ok(false), |agent| Ok(agent.ended()?.is_none()))
    }

    /// How the agent ended, if it has.
    ///
    /// # Errors
    /// Its process cannot be looked after.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        lock(&self.agent).as_mut().map_or(Ok(None), AgentProcess::ended)
    }

    /// The agent's process id.
    ///
    /// # Errors
    /// No agent runs.
    pub fn pid(&self) -> Result<u32> {
        lock(&self.agent)
            .as_ref()
            .map(AgentProcess::pid)
            .with_context(|| format!("{} has no agent", self.name()))
    }

    /// Sends the agent a signal.
    ///
    /// # Errors
    /// No agent runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        lock(&self.agent).as_ref().with_context(|| format!("{} has no agent", self.name()))?.signal(signal)
    }

    /// `kill -9` of the agent; the node stays on.
    ///
    /// # Errors
    /// No agent runs.
    pub fn kill_agent(&self) -> Result<()> {
        lock(&self.agent).take().with_context(|| format!("{} has no agent", self.name()))?.kill()
    }

    /// Stops the agent politely.
    ///
    /// # Errors
    /// No agent runs, or it does not stop.
    pub fn stop_agent(&self) -> Result<ExitStatus> {
        lock(&self.agent).take().with_context(|| format!("{} has no agent", self.name()))?.stop()
    }

    /// `weave` with arguments, inside the node, whatever its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_weave(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command =
            command::words(&self.agent_program, [format!("--run-dir={}", self.run_dir().display())]);
        command.args(arguments).env_clear().env("PATH", PROGRAMS);
        self.ns()?.finish(command, "")
    }

    /// `weave` with arguments that must succeed, and what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn weave(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.try_weave(arguments)?;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        ensure!(finished.success(), "weave {} on {}: {}", arguments.join(" "), self.name(), said.trim());
        Ok(finished.stdout)
    }

    /// `weave reset --force`, kept away from the machine's own folders of CNI plugins and networks.
    ///
    /// # Errors
    /// It fails.
    pub fn reset(&self) -> Result<String> {
        let [data, bin, conf] = self.places();
        self.weave(&["reset", "--force", &data, &bin, &conf])
    }

    /// `weave setup-cni` into the node's own folders, beside links to the standard plugins.
    ///
    /// # Errors
    /// It fails.
    pub fn setup_cni(&self) -> Result<String> {
        let bin_dir = self.cni_bin_dir();
        std::fs::create_dir_all(&bin_dir).context("making the folder of plugins")?;
        for plugin in ["loopback", "portmap", "bandwidth"] {
            let (target, link) = (self.plugins.join(plugin), bin_dir.join(plugin));
            ensure!(target.is_file(), "{} is missing: run `make tools`", target.display());
            std::os::unix::fs::symlink(&target, &link).with_context(|| format!("linking {plugin}"))?;
        }
        let [data, bin, conf] = self.places();
        self.weave(&["setup-cni", &data, &bin, &conf])
    }

    fn places(&self) -> [String; 3] {
        [
            format!("--data-dir={}", self.data_dir().display()),
            format!("--bin-dir={}", self.cni_bin_dir().display()),
            format!("--conf-dir={}", self.cni_conf_dir().display()),
        ]
    }

    /// The links of the node, by name.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn links(&self) -> Result<BTreeSet<String>> {
        let shown = self.ns()?.ip("-br link show")?;
        let name = |line: &str| Some(line.split_whitespace().next()?.split('@').next()?.to_owned());
        Ok(shown.lines().filter_map(name).collect())
    }

    /// The document behind `weave status …`.
    ///
    /// # Errors
    /// The agent does not answer or the answer is no JSON.
    pub fn status(&self, topic: &[&str]) -> Result<Value> {
        let arguments: Vec<_> = ["status"].iter().chain(topic).chain(&["--json"]).copied().collect();
        let finished = self.try_weave(&arguments)?;
        let Finished { code, stdout, stderr } = &finished;
        let answered = finished.success() || *code == Some(NOT_READY);
        ensure!(answered, "weave {} on {}: {}", arguments.join(" "), self.name(), stderr.trim());
        serde_json::from_str(stdout).with_context(|| format!("weave status is no JSON: {stdout}"))
    }

    /// Attaches a new pod, as a container runtime would.
    ///
    /// # Errors
    /// The shim refuses.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::attach(self, self.bare_pod(name)?, name)
    }

    /// An empty namespace for a pod of this node.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn bare_pod(&self, name: &str) -> Result<Netns> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        Netns::create(&format!("{}-{}-{name}.{number}", self.tag, self.name()))
    }

    /// The shim that this host's container runtime calls.
    #[must_use]
    pub fn shim_program(&self) -> &Path {
        &self.shim_program
    }

    /// What a person would look at after a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let mut told = format!("==== {} ({})\n", self.name(), self.address());
        let log = self.log();
        told.push_str(&last_lines(&log));
        if let Ok(log) = std::fs::read_to_string(self.folder.join(crate::containerd::LOG)) {
            told.push_str(&format!("\n---- {} containerd\n{}", self.name(), last_lines(&log)));
        }
        let Ok(node) = self.ns() else { return told + "\n(powered off)\n" };
        for look in ["ip -br addr", "ip route show table all type unicast", "ip neigh", "nft list ruleset"] {
            let shown = node.run(look).unwrap_or_else(|error| format!("{error:#}"));
            told.push_str(&format!("\n---- {} # {look}\n{shown}", self.name()));
        }
        told
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        lock(&self.pids).clone()
    }

    pub(crate) fn stop_everything(&self) {
        let _ = self.kill_if_running();
        if let Some(node) = lock(&self.namespace).take() {
            let _ = ns::delete(node.name());
        }
    }

    pub(crate) fn keep(&self) {
        if let Some(agent) = lock(&self.agent).as_mut() {
            agent.keep();
        }
        // The guard inside is shared; leaking one reference keeps it from ever being dropped.
        std::mem::forget(lock(&self.namespace).clone());
    }

    fn kill_if_running(&self) -> Result<()> {
        lock(&self.agent).take().map_or(Ok(()), AgentProcess::kill)
    }

    fn ensure_running(&self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!(
                "the agent of {} ended ({status}); its log ends with: {}",
                self.name(),
                tail(&self.log())
            ),
        }
    }

    /// One port of the underlay's bridge. A namespace that was deleted a moment ago may still hold the name.
    fn plug_in(&self, node: &Netns) -> Result<()> {
        let (port, underlay) = (format!("p{}", self.index), self.underlay.display());
        let mtu = self.options.mtu;
        eventually(Duration::from_secs(5), "the underlay's port is free", || {
            node.ip(&format!(
                "link add {UPLINK} mtu {mtu} type veth peer name {port} mtu {mtu} netns {underlay}"
            ))
        })?;
        command::succeed(command::line(&format!("ip -n {underlay} link set {port} master {BRIDGE} up")), "")?;
        node.ip_batch(&format!(
            "addr add {}/24 dev {UPLINK}\nlink set {UPLINK} up\nroute add default via {GATEWAY}\n",
            self.address()
        ))
        .map(drop)
    }
}

/// Joins two nodes without uplinks by a cable; each keeps its address.
///
/// # Errors
/// One of them has an uplink already.
pub fn wire(one: &Host, other: &Host) -> Result<()> {
    let (left, right) = (one.ns()?, other.ns()?);
    left.ip(&format!("link add {UPLINK} type veth peer name {UPLINK} netns {}", right.name()))?;
    for (node, host) in [(&left, one), (&right, other)] {
        node.ip_batch(&format!("addr add {}/24 dev {UPLINK}\nlink set {UPLINK} up\n", host.address()))?;
    }
    Ok(())
}

/// The end of a log.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The last words of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

/// A lock whose holder cannot have left anything half-done: every critical section is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
