//! A node of the cluster: containerd, kubelet and kube-proxy in a userland of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use weave_netns::agent::PROGRAMS;
use weave_netns::userland::Userland;
use weave_netns::wait::eventually;
use weave_netns::{Host, Lab};

use crate::control_plane::{ControlPlane, flags, shown};
use crate::daemon::Daemon;
use crate::image::Images;
use crate::programs::program;

/// How long containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The runtime's socket, inside the userland.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// The pods' addresses: what the manifest gives to the agents.
pub const POD_RANGE: &str = "10.32.0.0/12";

/// Gives the userland the folders of a node: its own /etc, /opt, /var/log, /sys and, on its disk,
/// /var/lib; and control groups.
/// $1 is the folder of its disk, $2 that of the CNI plugins, $3 its group, $4 its machine's id.
const FURNISH: &str = r#"set -eu
mkdir -p "$1/var-lib" /run/etc /run/groups
mount --bind "$1/var-lib" /var/lib
mount --make-rshared /var/lib
mkdir -p /var/lib/containerd /var/lib/kubelet
# Snapshots are overlays, which cannot stand on an overlay: a test may run on one.
mount -t tmpfs tmpfs /var/lib/containerd
cp -a /etc/. /run/etc/
mount --bind /run/etc /etc
rm -rf /etc/cni && mkdir -p /etc/cni/net.d
rm -f /etc/machine-id && echo "$4" > /etc/machine-id
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /opt
mkdir -p /opt/cni/bin
cp "$2"/* /opt/cni/bin/
mount --rbind /sys/fs/cgroup /run/groups
mount -t sysfs sysfs /sys
mount --rbind /run/groups /sys/fs/cgroup
for hierarchy in /sys/fs/cgroup/*/; do
    [ "$(stat -f -c %T "$hierarchy")" = cgroupfs ] || continue
    mkdir -p "$hierarchy/$3"
    for file in cpuset.cpus cpuset.mems; do
        if [ -e "$hierarchy/$file" ]; then cat "$hierarchy/$file" > "$hierarchy/$3/$file"; fi
    done
done"#;

/// `weave reset` by the program in the image $1, as docs/kubernetes.md and docs/migrating-from-weave-net.md have it.
const RESET: &str = r#"set -eu
mkdir -p /run/image
ctr -a "$2" -n k8s.io images mount "$1" /run/image > /dev/null
/run/image/usr/bin/weave reset
umount /run/image"#;

/// An iptables in folder $1 that says to be of version $2; an empty folder without a version.
const PRETEND: &str = r#"set -eu
mkdir -p "$1"
if [ -n "$2" ]; then
    printf '#!/bin/sh\n[ "$1" != --version ] || { echo "iptables v%s"; exit; }\nexec /usr/sbin/iptables "$@"\n' "$2" > "$1/iptables"
    chmod 755 "$1/iptables"
fi"#;

/// A node.
#[derive(Debug)]
pub struct Node {
    host: Arc<Host>,
    plugins: PathBuf,
    images: Images,
    kubeconfigs: [PathBuf; 2],
    running: Mutex<Option<Running>>,
}

/// What ends when the power goes.
#[derive(Debug)]
struct Running {
    kubelet: Option<Daemon>,
    proxy: Option<Daemon>,
    containerd: Daemon,
    userland: Userland,
}

impl Node {
    /// A node of this name on the lab's underlay, with everything running. The API server must know its user.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(lab: &Lab, plane: &ControlPlane, images: &Images, name: &str) -> Result<Self> {
        let node = Self {
            host: lab.host(name)?,
            plugins: lab.settings().plugins.clone(),
            images: images.clone(),
            kubeconfigs: [
                plane.kubeconfig(&format!("system:node:{name}"))?,
                plane.kubeconfig("system:kube-proxy")?,
            ],
            running: Mutex::default(),
        };
        node.boot()?;
        Ok(node)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The lab's host under it.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs a program in its userland that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// The node is off, or the program fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.lock().as_ref().context("the node is off")?.userland.run(program, arguments)
    }

    /// Removes the network of weave, which has no agent here any more, and returns what that said.
    ///
    /// # Errors
    /// The node is off, or something cannot be removed.
    pub fn reset(&self) -> Result<String> {
        let image = format!("docker.io/library/{}", crate::image::WEAVE);
        self.run("bash", &["-c", RESET, "reset", &image, SOCKET])
    }

    /// Ends the kubelet as a crash does and starts it again.
    ///
    /// # Errors
    /// It does not run, or does not start.
    pub fn restart_kubelet(&self) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().context("the node is off")?;
        running.kubelet.take().context("no kubelet")?.stop(&running.userland, "KILL")?;
        running.kubelet = Some(self.kubelet(&running.userland)?);
        Ok(())
    }

    /// Ends kube-proxy and starts it again, with an iptables that says to be of this version if one is given.
    ///
    /// # Errors
    /// It does not run, or does not start.
    pub fn restart_proxy(&self, iptables: Option<&str>) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().context("the node is off")?;
        running.proxy.take().context("no kube-proxy")?.stop(&running.userland, "TERM")?;
        running.proxy = Some(self.proxy(&running.userland, iptables)?);
        Ok(())
    }

    /// Ends kube-proxy for good, and removes what it has told the kernel of addresses.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_proxy(&self) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().context("the node is off")?;
        running.proxy.take().context("no kube-proxy")?.stop(&running.userland, "TERM")?;
        running.userland.run("bash", &["-c", "iptables -t nat -F && iptables -t nat -X"]).map(drop)
    }

    /// Ends the kubelet for good.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_kubelet(&self) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().context("the node is off")?;
        running.kubelet.take().context("no kubelet")?.stop(&running.userland, "KILL")
    }

    /// The power cord: every process is gone, and so are links, rules and what is in memory.
    ///
    /// # Errors
    /// It is off already.
    pub fn power_off(&self) -> Result<()> {
        drop(self.lock().take().context("the node is off already")?);
        self.host.power_off()
    }

    /// Starts it again, with the disk it had.
    ///
    /// # Errors
    /// Something does not start.
    pub fn power_on(&self) -> Result<()> {
        self.host.power_on()?;
        self.boot()
    }

    /// Fails when one of its programs has ended by itself.
    ///
    /// # Errors
    /// One has; the message holds the end of its log.
    pub fn ensure_running(&self) -> Result<()> {
        let mut running = self.lock();
        let mut programs = running
            .iter_mut()
            .flat_map(|it| it.kubelet.iter_mut().chain(&mut it.proxy).chain([&mut it.containerd]));
        programs.try_for_each(Daemon::ensure_running).with_context(|| self.name().to_owned())
    }

    /// The end of the kubelet's log, and of kube-proxy's and containerd's.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let running = self.lock();
        let Some(Running { kubelet, proxy, containerd, .. }) = &*running else {
            return format!("{} is off", self.name());
        };
        let tails = kubelet.iter().chain(proxy).chain([containerd]).map(Daemon::tail);
        format!("== {}\n{}", self.name(), tails.collect::<Vec<_>>().join("\n---\n"))
    }

    fn boot(&self) -> Result<()> {
        let userland = Userland::start(&self.host)?;
        let (disk, plugins, group) = (shown(self.host.folder()), shown(&self.plugins), userland.cgroup());
        let machine = format!("{:032x}", u128::from(u32::from(self.host.address())));
        userland.run("bash", &["-c", FURNISH, "furnish", &disk, &plugins, &group, &machine])?;
        let containerd = self.containerd(&userland)?;
        let kubelet = Some(self.kubelet(&userland)?);
        let proxy = Some(self.proxy(&userland, None)?);
        *self.lock() = Some(Running { kubelet, proxy, containerd, userland });
        Ok(())
    }

    fn containerd(&self, userland: &Userland) -> Result<Daemon> {
        let config = self.host.folder().join("containerd.toml");
        fs::write(&config, containerd_configuration()).context("writing containerd's configuration")?;
        let arguments = ["--config".to_owned(), shown(&config)];
        let mut daemon = Daemon::start(
            userland,
            self.host.folder(),
            "containerd",
            (Path::new("/usr/bin/containerd"), &arguments),
        )?;
        eventually(PATIENCE, "containerd answers", || {
            daemon.ensure_running()?;
            userland.run("ctr", &["-a", SOCKET, "version"])
        })?;
        for archive in self.images.archives() {
            self.import(userland, archive)?;
        }
        Ok(daemon)
    }

    fn import(&self, userland: &Userland, archive: &Path) -> Result<()> {
        let image = shown(archive);
        userland.run("ctr", &["-a", SOCKET, "-n", "k8s.io", "images", "import", &image])?;
        Ok(())
    }

    /// Gives the node another image.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.import(&self.lock().as_ref().context("the node is off")?.userland, archive)
    }

    fn kubelet(&self, userland: &Userland) -> Result<Daemon> {
        let config = self.host.folder().join("kubelet.json");
        let document = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": userland.cgroup(),
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            // Many pods at once are what the tests are about.
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            "eventRecordQPS": 0,
            "kubeAPIQPS": 50,
            "kubeAPIBurst": 100,
            "syncFrequency": "10s",
        });
        fs::write(&config, document.to_string()).context("writing the kubelet's configuration")?;
        let arguments = flags(&[
            ("config", &shown(&config)),
            ("kubeconfig", &shown(&self.kubeconfigs[0])),
            ("container-runtime", "remote"),
            ("container-runtime-endpoint", &format!("unix://{SOCKET}")),
            ("hostname-override", self.name()),
            ("node-ip", &self.host.address().to_string()),
            ("cert-dir", "/var/lib/kubelet/pki"),
        ]);
        Daemon::start(userland, self.host.folder(), "kubelet", (&program("kubelet")?, &arguments))
    }

    fn proxy(&self, userland: &Userland, iptables: Option<&str>) -> Result<Daemon> {
        let folder = format!("/run/iptables-{}", iptables.unwrap_or_default());
        userland.run("bash", &["-c", PRETEND, "pretend", &folder, iptables.unwrap_or_default()])?;
        let mut arguments = vec![format!("PATH={folder}:{PROGRAMS}"), shown(&program("kube-proxy")?)];
        arguments.extend(flags(&[
            ("kubeconfig", &shown(&self.kubeconfigs[1])),
            ("proxy-mode", "iptables"),
            ("cluster-cidr", POD_RANGE),
            // The machine's limit is not this node's to change.
            ("conntrack-max-per-core", "0"),
            ("hostname-override", self.name()),
        ]));
        Daemon::start(userland, self.host.folder(), "kube-proxy", (Path::new("/usr/bin/env"), &arguments))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn containerd_configuration() -> String {
    let sandbox = weave_netns::containerd::IMAGE;
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[debug]
level = "warn"

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#
    )
}
