//! Throwaway network namespaces, and hosts and pods in them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weave_proto::local::cni::PodPort;
use weave_proto::{Cidr, PeerName};

use crate::net::{HostOptions, NetError, Node, NodeSettings, NodeState, PeerPath};

/// How long a condition may take to come true: two looks of the owner, and room for a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
pub(super) const UNIVERSE: &str = "10.32.0.0/12";

static SERIAL: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The right to make namespaces, one test at a time; none where the test cannot run.
pub(super) fn lab() -> Option<MutexGuard<'static, ()>> {
    if rustix::process::geteuid().is_root() && Command::new("ip").arg("-V").output().is_ok() {
        return Some(SERIAL.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let ci = std::env::vars().any(|(name, value)| name == "CI" && value == "true");
    assert!(!ci, "this test needs root and iproute2, and CI must not skip it");
    println!("skipped: this test needs root and iproute2");
    None
}

/// A network namespace, removed when dropped.
pub(super) struct Host {
    pub(super) namespace: String,
}

impl Host {
    pub(super) fn new(label: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("nt-{label}-{}-{number}", std::process::id());
        assert_succeeds(Command::new("ip").args(["netns", "add", &namespace]));
        let host = Self { namespace };
        host.run("ip link set lo up");
        host
    }

    /// Runs a command line (split at blanks) inside, and returns what it printed.
    pub(super) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn try_run(&self, line: &str) -> Output {
        let words = line.split_whitespace();
        Command::new("ip").args(["netns", "exec", &self.namespace]).args(words).output().unwrap()
    }

    pub(super) fn succeeds(&self, line: &str) -> bool {
        self.try_run(line).status.success()
    }

    pub(super) fn shell(&self, script: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "sh", "-ec", script]);
        assert_succeeds(&mut command)
    }

    pub(super) fn json(&self, line: &str) -> serde_json::Value {
        let text = self.run(line);
        if text.trim().is_empty() { serde_json::json!([]) } else { serde_json::from_str(&text).unwrap() }
    }

    pub(super) fn ping(&self, address: &str) -> bool {
        self.succeeds(&format!("ping -c 1 -W 1 {address}"))
    }

    /// Runs `body` on a thread inside.
    pub(super) fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.namespace);
        let thread = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            body()
        });
        thread.join().unwrap()
    }

    pub(super) fn node(&self) -> Node {
        self.inside(|| Node::start(NodeSettings::default())).unwrap()
    }

    /// Everything of the network that we could have made, as text to compare.
    pub(super) fn snapshot(&self) -> String {
        let mut text = String::new();
        for line in [
            "ip -d link show",
            "ip address show",
            "ip route show table all",
            "ip neigh show nud permanent",
            "bridge fdb show",
            "nft -a list ruleset",
        ] {
            let output = self.run(line);
            let _infallible = writeln!(text, "== {line}\n{output}");
        }
        let settings = self.shell(
            "cd /proc/sys/net/ipv4; grep -H . ip_forward conf/weave*/rp_filter conf/weave*/forwarding \
             conf/weave*/send_redirects conf/weave*/arp_ignore 2>/dev/null || true",
        );
        without_moving_numbers(&(text + &settings))
    }
}

/// Timers of bridges and counters run on their own.
fn without_moving_numbers(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let mut skip = false;
        for word in line.split_whitespace() {
            if !skip {
                kept.push_str(word);
                kept.push(' ');
            }
            skip = word.ends_with("_timer") || word == "packets" || word == "bytes";
        }
        kept.push('\n');
    }
    kept
}

/// Asserts that two snapshots are the same, and shows only in what they are not.
pub(super) fn assert_same(before: &str, after: &str) {
    let missing: Vec<&str> =
        before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
    let extra: Vec<&str> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    assert!(before == after, "missing: {missing:#?}\nextra: {extra:#?}");
}

impl Drop for Host {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
        if !removed.is_ok_and(|status| status.success()) {
            println!("could not remove the namespace {}", self.namespace);
        }
    }
}

fn assert_succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a condition is true.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(super) fn name(number: u8) -> PeerName {
    PeerName::from_bits([0x7a, 0, 0, 0, 0, number])
}

pub(super) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Node `number` owns 10.(32+number).0.0/16 and has its .0.1.
pub(super) fn state(number: u8) -> NodeState {
    NodeState {
        name: name(number),
        universe: cidr(UNIVERSE),
        address: Some(ip(&format!("10.{}.0.1", 32 + number))),
        own: vec![cidr(&format!("10.{}.0.0/16", 32 + number))],
        peers: Vec::new(),
        probed: Vec::new(),
        sealed: Vec::new(),
        has_tun: false,
        pods: Vec::new(),
        mtu: 1450,
        options: HostOptions::default(),
    }
}

/// The path to node `number` at 192.168.77.number.
pub(super) fn path(number: u8) -> PeerPath {
    PeerPath {
        peer: name(number),
        underlay: ip(&format!("192.168.77.{number}")),
        overlay: ip(&format!("10.{}.0.1", 32 + number)),
        ranges: vec![cidr(&format!("10.{}.0.0/16", 32 + number))],
        mtu: None,
    }
}

pub(super) fn port(interface: &str, address: &str) -> PodPort {
    let last: Vec<u8> = match ip(address) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets()[12..].to_vec(),
    };
    PodPort {
        host_interface: interface.to_owned(),
        mac: [0x5e, 0, last[0], last[1], last[2], last[3]],
        address: ip(address),
        netns: String::new(),
        pod: None,
    }
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    crate::net::names::Mac(mac).to_string()
}

/// Applies a state and waits until it is in force.
pub(super) fn apply(node: &Node, state: NodeState) {
    try_apply(node, state).unwrap();
}

pub(super) fn try_apply(node: &Node, state: NodeState) -> Result<(), NetError> {
    node.set(state);
    block_on(node.settled())
}

/// A pod made by hand on a host: a namespace, a veth pair, an address, a route and the gateway's neighbour.
pub(super) fn pod(host: &Host, node: &Node, pod: &PodPort) -> Host {
    let inside = Host::new("pod");
    let facts = node.facts().unwrap();
    let (gateway, gateway_mac) = (facts.address.unwrap(), facts.bridge_mac);
    let (port, mac, address) = (&pod.host_interface, mac_text(pod.mac), pod.address);
    host.run(&format!(
        "ip link add {port} type veth peer name eth0 address {mac} netns {}",
        inside.namespace
    ));
    inside.run(&format!("ip link set eth0 mtu {} up", facts.mtu));
    inside.run(&format!("ip address add {address}/32 dev eth0"));
    inside.run(&format!("ip route add {gateway} dev eth0 scope link"));
    inside.run(&format!("ip route add default via {gateway} src {address}"));
    inside.run(&format!("ip neigh replace {gateway} lladdr {gateway_mac} dev eth0 nud permanent"));
    block_on(node.attach(pod.clone())).unwrap();
    // The kernel hears of the carrier from a work queue; until then the bridge swallows what the port receives.
    eventually("the port forwards", || {
        host.run(&format!("bridge link show dev {port}")).contains("state forwarding")
    });
    inside
}

/// Two hosts with a veth pair between them as underlay: 192.168.77.1 and .2, default route each to the other.
pub(super) fn two_hosts() -> (Host, Host) {
    let (one, two) = (Host::new("a"), Host::new("b"));
    one.run(&format!("ip link add up0 type veth peer name up0 netns {}", two.namespace));
    for (host, own, other) in [(&one, 1, 2), (&two, 2, 1)] {
        host.run(&format!("ip address add 192.168.77.{own}/24 dev up0"));
        host.run("ip link set up0 addrgenmode none");
        host.run("ip link set up0 up");
        host.run(&format!("ip route add default via 192.168.77.{other}"));
    }
    (one, two)
}

/// Sets whether bridged packets pass the IP hooks.
pub(super) fn bridge_netfilter(host: &Host, on: bool) {
    host.shell(&format!("echo {} > /proc/sys/net/bridge/bridge-nf-call-iptables", u8::from(on)));
}

/// tcpdump on an interface.
pub(super) struct Capture {
    child: Child,
}

impl Capture {
    pub(super) fn start(host: &Host, interface: &str, filter: &str) -> Self {
        Self::with(host, &["-i", interface, filter])
    }

    /// Of what comes in only.
    pub(super) fn incoming(host: &Host, interface: &str) -> Self {
        Self::with(host, &["-i", interface, "-Q", "in"])
    }

    fn with(host: &Host, words: &[&str]) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &host.namespace, "tcpdump", "--immediate-mode", "-U", "-ln"])
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // tcpdump says so when it listens.
        let mut complaints = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(complaints.read_line(&mut line).unwrap() > 0, "tcpdump ended");
        }
        std::thread::spawn(move || {
            let _ended = complaints.read_to_string(&mut String::new());
        });
        Self { child }
    }

    /// Ends it, and returns what it saw.
    pub(super) fn stop(self) -> String {
        stop(self.child)
    }
}

/// `ip monitor` and `nft monitor`.
pub(super) struct Monitor {
    children: Vec<(Child, Arc<Mutex<String>>)>,
}

impl Monitor {
    pub(super) fn start(host: &Host) -> Self {
        let start = |words: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &host.namespace]).args(words);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let heard = Arc::new(Mutex::new(String::new()));
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let keeper = Arc::clone(&heard);
            std::thread::spawn(move || {
                let mut line = String::new();
                while output.read_line(&mut line).unwrap_or(0) > 0 {
                    keeper.lock().unwrap().push_str(&line);
                    line.clear();
                }
            });
            (child, heard)
        };
        let children =
            vec![start(&["ip", "monitor", "link", "address", "route", "neigh"]), start(&["nft", "monitor"])];
        // Both listen as soon as their sockets are in the kernel's groups.
        eventually("the monitors listen", || {
            let sockets = host.run("cat /proc/net/netlink");
            let listeners = sockets.lines().skip(1).filter(|line| {
                let mut words = line.split_whitespace().skip(2);
                let pid: u32 = words.next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
                let groups = words.next().unwrap_or("00000000");
                children.iter().any(|(child, _)| child.id() == pid) && groups != "00000000"
            });
            listeners.count() >= children.len()
        });
        Self { children }
    }

    /// Ends them, and returns what they heard. That they heard is shown by a last change.
    pub(super) fn stop(self, host: &Host) -> String {
        host.run("ip route add 203.0.113.7/32 dev lo");
        host.run("nft add table ip nt-probe");
        let mut all = String::new();
        for ((child, heard), last) in self.children.into_iter().zip(["203.0.113.7", "nt-probe"]) {
            eventually("the monitors hear", || heard.lock().unwrap().contains(last));
            let heard = heard.lock().unwrap().clone();
            all.extend(heard.lines().take_while(|line| !line.contains(last)).map(|line| format!("{line}\n")));
            stop(child);
        }
        host.run("ip route del 203.0.113.7/32 dev lo");
        host.run("nft delete table ip nt-probe");
        all
    }
}

fn stop(mut child: Child) -> String {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output).unwrap();
    }
    child.wait().unwrap();
    output.trim().to_owned()
}

/// Two hosts whose nodes know each other, with one pod each: 10.33.0.2 and 10.34.0.2.
pub(super) struct Pair {
    pub(super) one: (Host, Node, Host),
    pub(super) two: (Host, Node, Host),
}

pub(super) fn pair() -> Pair {
    let (one, two) = two_hosts();
    let ready = |host: Host, own: u8, other: u8| {
        let node = host.node();
        let mut wanted = state(own);
        wanted.peers = vec![path(other)];
        apply(&node, wanted);
        let inside = pod(&host, &node, &port("vethweone", &format!("10.{}.0.2", 32 + own)));
        (host, node, inside)
    };
    Pair { one: ready(one, 1, 2), two: ready(two, 2, 1) }
}

/// A TCP server in a namespace that answers each connection with one line.
pub(super) struct Server {
    stop: Arc<std::sync::atomic::AtomicBool>,
    port: u16,
}

impl Server {
    pub(super) fn start(host: &Host, port: u16, line: &str) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, line) = (Arc::clone(&stop), line.to_owned());
        host.inside(move || {
            let listener = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(mut connection) = connection else { continue };
                    let peer = connection.peer_addr().unwrap().ip();
                    let _client_gone =
                        std::io::Write::write_all(&mut connection, format!("{line} {peer}").as_bytes());
                }
            });
        });
        Self { stop, port }
    }

    /// Ends the server; `host` is where it listens.
    pub(super) fn stop(self, host: &Host) {
        self.stop.store(true, Ordering::Relaxed);
        let port = self.port;
        let _refused = host.inside(move || std::net::TcpStream::connect(("127.0.0.1", port)).map(drop));
    }
}

/// What the server at an address answers; none if it cannot be reached.
pub(super) fn ask(host: &Host, address: &str) -> Option<String> {
    let address: std::net::SocketAddr = address.parse().unwrap();
    host.inside(move || {
        let mut connection = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}
