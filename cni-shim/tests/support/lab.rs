//! A node in a network namespace of its own, with a bridge made by hand, the agent's server, and pods.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
};
use serde_json::{Value, json};
use weave_agent::cni::memory::{MemoryAddresses, MemoryPorts};
use weave_agent::cni::server::Server;
use weave_agent::cni::{Cni, Facts, Paths, tombstones};

use super::{Folder, Ran};

pub type Room = Cni<MemoryAddresses, MemoryPorts>;

/// A network namespace; gone when dropped.
pub struct Netns(String);

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Netns {
    pub fn new() -> Self {
        let name = format!("cn-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let netns = Self(name);
        sh(&format!("ip netns add {netns} && ip -n {netns} link set lo up", netns = netns.0));
        netns
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn path(&self) -> String {
        format!("/var/run/netns/{}", self.0)
    }

    /// Runs something on a thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let inside = || {
                enter(&path);
                work()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    /// `ip …` inside.
    pub fn ip(&self, arguments: &str) -> String {
        sh(&format!("ip -n {} {arguments}", self.0))
    }

    /// `ip -j …` inside.
    pub fn ip_json(&self, arguments: &str) -> Value {
        let text = sh(&format!("ip -d -j -n {} {arguments}", self.0));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    /// The names of its links.
    pub fn links(&self) -> BTreeSet<String> {
        let links = self.ip_json("link show");
        links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }

    /// A link, as `ip` shows it.
    pub fn link(&self, name: &str) -> Value {
        self.ip_json(&format!("link show {name}"))[0].clone()
    }

    /// The name goes, as when the runtime unmounts it; the path stays as a plain file or not at all.
    pub fn vanish(&self) {
        sh(&format!("ip netns del {}", self.0));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone_already = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn enter(path: &str) {
    let file = std::fs::File::open(path).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// The agent's container has these and no others: it could not enter a pod's namespace if it tried.
fn keep_the_agents_capabilities() {
    let few = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: few, permitted: few, inheritable }).unwrap();
}

/// Runs a shell command that must succeed; gives its output.
#[track_caller]
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a shell command succeeds.
pub fn succeeds(command: &str) -> bool {
    Command::new("sh").args(["-ec", command]).output().unwrap().status.success()
}

/// A node: its namespace, bridge, folder, and the agent's server while it runs.
pub struct Node {
    pub host: Netns,
    pub folder: Folder,
    pub room: Arc<Room>,
    server: Option<Running>,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// The address of the node on its bridge.
pub const GATEWAY: &str = "10.32.0.1";

/// The bridge's MAC address.
pub const BRIDGE_MAC: &str = "7a:00:00:00:00:01";

impl Node {
    /// A node whose agent runs.
    pub fn new() -> Self {
        let mut node = Self::without_agent();
        node.start();
        node
    }

    /// A node whose agent does not run yet.
    pub fn without_agent() -> Self {
        Self::with_range("10.32.0.0/12", GATEWAY, "10.32.0.2")
    }

    /// A node of a mesh with this range, of either family: its own address, and the first one for pods.
    pub fn with_range(range: &str, own: &str, first: &str) -> Self {
        let host = Netns::new();
        let name = host.name();
        sh(&format!(
            "ip -n {name} link add weave address {BRIDGE_MAC} type bridge
             ip -n {name} addr add {own} dev weave nodad
             ip -n {name} link set weave up
             ip -n {name} route add {range} dev weave src {own}
             ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1"
        ));
        let folder = Folder::new();
        let room = room(&host, &folder, (range, own, first));
        Self { host, folder, room, server: None }
    }

    /// Starts the agent's server, with a memory of its own.
    pub fn start(&mut self) {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let (room, path) = (Arc::clone(&self.room), self.host.path());
        let thread = std::thread::spawn(move || {
            enter(&path);
            keep_the_agents_capabilities();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(Arc::clone(&room)).unwrap();
                ready.send(()).unwrap();
                let serving = server.run(async {
                    let _dropped = stopped.await;
                });
                tokio::select! {
                    () = serving => {}
                    watching = tombstones::watch(room) => watching.unwrap(),
                }
            });
        });
        is_ready.recv().unwrap();
        self.wait_for_an_answer();
        self.server = Some(Running { stop, thread });
    }

    /// What is left from before is settled before the first request is answered.
    fn wait_for_an_answer(&self) {
        let mut stream = UnixStream::connect(self.folder.join("cni.sock")).unwrap();
        stream.write_all(b"{\"protocol\":1,\"verb\":\"status\"}\n").unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
    }

    /// Stops the agent's server.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.server.take() {
            let _stopped_already = stop.send(());
            thread.join().unwrap();
        }
    }

    /// The configuration of this node's network.
    pub fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "weave", "type": "weave-net",
            "runDir": self.folder.path(), "dataDir": self.folder.path(),
        })
    }

    /// Runs the shim for a pod.
    pub fn cni(&self, verb: &str, id: &str, netns: &str, conf: &Value) -> Ran {
        self.cni_with(&[], verb, (id, netns), conf)
    }

    /// The same with more variables.
    pub fn cni_with(
        &self,
        more: &[(&str, &str)],
        verb: &str,
        (id, netns): (&str, &str),
        conf: &Value,
    ) -> Ran {
        let mut env = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ];
        env.extend_from_slice(more);
        self.host.inside(|| super::weave_net(&env, conf))
    }

    /// Runs the shim as `weave-ipam`.
    pub fn ipam(&self, verb: &str, id: &str, conf: &Value) -> Ran {
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/var/run/netns/any"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ];
        self.host.inside(|| super::weave_ipam(&env, conf))
    }

    /// Pods' links on the node.
    pub fn pod_links(&self) -> BTreeSet<String> {
        self.host.links().into_iter().filter(|name| name.starts_with("vethwepl")).collect()
    }

    /// That nothing of any pod is left.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.pod_links(), BTreeSet::new());
        assert_eq!(self.room.addresses().given(), vec![]);
        assert_eq!(self.room.ports().attached().len(), 0);
        assert_eq!(self.folder.tombstones(), Vec::<std::path::PathBuf>::new());
        let records = std::fs::read_dir(self.folder.join("cni/records")).map_or(0, Iterator::count);
        assert_eq!(records, 0, "records");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(Running { stop, thread }) = self.server.take() {
            let _stopped_already = stop.send(());
            let _panicked_already = thread.join();
        }
    }
}

fn room(host: &Netns, folder: &Folder, (range, own, first): (&str, &str, &str)) -> Arc<Room> {
    let addresses = MemoryAddresses::starting_at(first.parse::<IpAddr>().unwrap());
    let index = host.link("weave")["ifindex"].as_u64().unwrap();
    let facts = Facts {
        bridge: "weave".to_owned(),
        index: u32::try_from(index).unwrap(),
        mac: weave_proto::local::cni::mac_from_text(BRIDGE_MAC).unwrap(),
        address: Some(own.parse().unwrap()),
        mtu: 1450,
        hairpin: true,
        universe: range.parse().unwrap(),
    };
    let paths = Paths { run_dir: folder.path().into(), data_dir: folder.path().into() };
    Arc::new(Cni::new(addresses, MemoryPorts::new(Ok(facts)), paths))
}

/// Whether one pod reaches an address.
pub fn reaches(from: &Netns, address: &str) -> bool {
    // A TCP connection to a port where nobody listens is refused at once if the address is reached.
    let connect = || {
        std::net::TcpStream::connect_timeout(
            &std::net::SocketAddr::new(address.parse().unwrap(), 9),
            std::time::Duration::from_secs(2),
        )
    };
    from.inside(connect).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

pub fn is_installed(plugin: &str) -> bool {
    Path::new("/usr/lib/cni").join(plugin).exists()
}
