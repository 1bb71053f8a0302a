//! containerd as the container runtime of a node, asked as the kubelet asks it.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use weave_cri::blocking::Socket;
use weave_cri::messages::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusResponse, PortMapping,
    Protocol,
};

use crate::command;
use crate::host::Host;
use crate::lab::Lab;
use crate::ns::Netns;
use crate::probe::{PORT, Server};
use crate::userland::Userland;
use crate::wait::eventually;

/// Where its log is, in the node's folder.
pub(crate) const LOG: &str = "containerd.log";

/// The image of every sandbox.
pub const IMAGE: &str = "weave.test/pause:1";

/// How long it may take until it answers, or until it sees a new network.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the archive with [`IMAGE`].
///
/// # Errors
/// busybox is missing.
pub fn image(lab: &Lab) -> Result<PathBuf> {
    let archive = lab.scratch().join("image.tar");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cri/sandbox-image.sh");
    let mut command = command::words(script, [&archive]);
    command.arg(IMAGE);
    command::succeed(command, "").context("is busybox missing? run `make tools`")?;
    Ok(archive)
}

/// A running containerd; ends when dropped, with every sandbox.
#[derive(Debug)]
pub struct Containerd {
    socket: Socket,
    userland: Userland,
    daemon: Child,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    name: String,
    ports: Vec<PortMapping>,
    annotations: HashMap<String, String>,
}

impl Plan {
    /// A pod of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The same whose usual TCP port is also that port of the node.
    #[must_use]
    pub fn host_port(mut self, host_port: u16) -> Self {
        self.ports.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: PORT.into(),
            host_port: host_port.into(),
        });
        self
    }

    /// The same with an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl Containerd {
    /// Starts it on a node, with its defaults but for the folders, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub fn start(host: &Host, image: &Path) -> Result<Self> {
        let folder = host.folder();
        let (config, socket) = (folder.join("containerd.toml"), folder.join("containerd.sock"));
        let conf_dir = host.cni_conf_dir();
        std::fs::create_dir_all(&conf_dir).context("making the folder of networks")?;
        let text = configuration(&folder.join("containerd"), &socket, &host.cni_bin_dir(), &conf_dir);
        std::fs::write(&config, text).context("writing containerd's configuration")?;
        let log = File::create(folder.join(LOG)).context("making containerd's log")?;
        let userland = Userland::start(host)?;
        let mut command = userland.command("containerd")?;
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let daemon = command.spawn().context("starting containerd")?;
        let runtime = Self { socket: Socket::new(&socket), userland, daemon };
        eventually(PATIENCE, "containerd answers", || runtime.network_ready().map(drop))?;
        let address = socket.display().to_string();
        let archive = image.display().to_string();
        let load = ["-a", &address, "-n", "k8s.io", "images", "import", "--snapshotter", "native", &archive];
        runtime.userland.run("ctr", &load)?;
        Ok(runtime)
    }

    /// Whether it can attach pods, and if not, why.
    ///
    /// # Errors
    /// It does not answer.
    pub fn network_ready(&self) -> Result<Result<(), String>> {
        self.socket.network_ready()
    }

    /// Waits until it can attach pods.
    ///
    /// # Errors
    /// It cannot in time; the message says why.
    pub fn wait_network_ready(&self) -> Result<()> {
        eventually(PATIENCE, "the runtime's network is ready", || {
            self.network_ready()?.map_err(|why| anyhow!(why))
        })
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn run(&self, plan: &Plan) -> Result<Sandbox> {
        let Plan { name, ports, annotations } = plan.clone();
        let metadata = PodSandboxMetadata {
            name: name.clone(),
            uid: name.clone(),
            namespace: "lab".to_owned(),
            attempt: 0,
        };
        let id = self.socket.run(PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.clone(),
            port_mappings: ports,
            annotations,
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.userland.cgroup() }),
            ..Default::default()
        })?;
        let answer = self.socket.status(&id)?;
        let netns = netns_path(&answer)?;
        let status = answer.status.context("a sandbox without status")?;
        ensure!(status.state == 0, "{name} is not ready after RunPodSandbox");
        let shown = status.network.unwrap_or_default().ip;
        let address = shown.parse().with_context(|| format!("{name} has the address {shown:?}"))?;
        let namespace = Netns::at(&self.userland.seen(&netns)?, &name)?;
        Ok(Sandbox { name, id, address, netns, namespace })
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn stop(&self, sandbox: &Sandbox) -> Result<()> {
        self.socket.stop(&sandbox.id).with_context(|| format!("stopping {}", sandbox.name))
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn remove(&self, sandbox: &Sandbox) -> Result<()> {
        self.socket.remove(&sandbox.id).with_context(|| format!("removing {}", sandbox.name))
    }

    /// Whether containerd knows the sandbox.
    #[must_use]
    pub fn knows(&self, sandbox: &Sandbox) -> bool {
        self.socket.status(&sandbox.id).is_ok()
    }

    /// The paths of the network namespaces that it keeps.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn namespaces(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(self.userland.seen("/run/netns")?) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("listing containerd's namespaces")?,
        };
        entries.map(|entry| Ok(entry?.path())).collect()
    }

    /// Takes the path of a sandbox's namespace away, as a careless clean-up does.
    ///
    /// # Errors
    /// It is gone already.
    pub fn lose_namespace(&self, sandbox: &Sandbox) -> Result<()> {
        self.userland.run("umount", &["--lazy", &sandbox.netns])?;
        self.userland.run("rm", &[&sandbox.netns]).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What is inside ends with the userland; this is the program that waits for it.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A sandbox. Dropping it leaves it running.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    id: String,
    address: Ipv4Addr,
    netns: String,
    namespace: Netns,
}

impl Sandbox {
    /// The runtime's id of it, which is the container id of CNI.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address as the runtime tells it.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its network namespace, which the runtime made.
    #[must_use]
    pub const fn ns(&self) -> &Netns {
        &self.namespace
    }

    /// Serves TCP and UDP on the usual port until the server is dropped.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self) -> Result<Server> {
        Server::start(&self.namespace, &self.name, PORT)
    }

    /// Where [`Self::serve`] listens.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        SocketAddr::from((self.address, PORT))
    }
}

/// The path of the sandbox's namespace, which only the verbose status tells.
fn netns_path(answer: &PodSandboxStatusResponse) -> Result<String> {
    let info: Value = serde_json::from_str(answer.info.get("info").context("a status without info")?)?;
    let namespaces =
        info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces in the info")?;
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network");
    let path = network.and_then(|namespace| namespace["path"].as_str());
    path.map(str::to_owned).with_context(|| format!("no network namespace in {namespaces:?}"))
}

/// Snapshots are plain folders, because a test may itself run on an overlay filesystem.
fn configuration(root: &Path, socket: &Path, bin_dir: &Path, conf_dir: &Path) -> String {
    let [root, socket, bin_dir, conf_dir] = [root, socket, bin_dir, conf_dir].map(Path::display);
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"

[debug]
level = "warn"

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_tcp_service = true
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
"#
    )
}
