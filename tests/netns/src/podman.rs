//! podman with its CNI back end: a third client of the plugin, with results and caches of its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cni::NETWORK;
use crate::command;
use crate::containerd::IMAGE;
use crate::host::Host;
use crate::ns::Netns;
use crate::userland::Userland;

/// podman on one node. Its containers end when it is dropped.
#[derive(Debug)]
pub struct Podman {
    storage: PathBuf,
    config: PathBuf,
    userland: Userland,
}

impl Podman {
    /// Gives a node podman and the image.
    ///
    /// # Errors
    /// It is not installed, or cannot load the image.
    pub fn start(host: &Host, image: &Path) -> Result<Self> {
        let config = host.folder().join("containers.conf");
        std::fs::write(&config, configuration(&host.cni_bin_dir(), &host.cni_conf_dir()))
            .context("writing podman's configuration")?;
        let podman =
            Self { storage: host.folder().join("containers"), config, userland: Userland::start(host)? };
        podman.run(&["load", "--quiet", "--input", &image.display().to_string()])?;
        Ok(podman)
    }

    /// `podman` with arguments that must succeed, and what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.userland.command("podman")?;
        // The mesh does not care how layers are stored; this way works on every filesystem.
        command.args(["--storage-driver", "vfs", "--runroot", "/run/containers", "--root"]);
        command.arg(&self.storage).args(arguments).env("CONTAINERS_CONF", &self.config);
        let said = command::succeed(command, "")?;
        Ok(said.trim().to_owned())
    }

    /// Starts a container on the network; its id.
    ///
    /// # Errors
    /// podman refuses.
    pub fn container(&self, name: &str, options: &[&str]) -> Result<String> {
        let group = self.userland.cgroup();
        let mut arguments =
            vec!["run", "--detach", "--name", name, "--network", NETWORK, "--cgroup-parent", &group];
        arguments.extend(options);
        arguments.push(IMAGE);
        self.run(&arguments)
    }

    /// The address of a container as podman tells it.
    ///
    /// # Errors
    /// There is no such container, or it has none.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        let format = format!("{{{{ (index .NetworkSettings.Networks {NETWORK:?}).IPAddress }}}}");
        let shown = self.run(&["inspect", "--format", &format, name])?;
        shown.parse().with_context(|| format!("{name} has the address {shown:?}"))
    }

    /// The network namespace of a container.
    ///
    /// # Errors
    /// There is no such container, or it does not run.
    pub fn ns(&self, name: &str) -> Result<Netns> {
        let path = self.run(&["inspect", "--format", "{{ .NetworkSettings.SandboxKey }}", name])?;
        Netns::at(&self.userland.seen(&path)?, name)
    }

    /// Runs a program inside a container.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, name: &str, words: &[&str]) -> Result<String> {
        self.run(&[&["exec", name], words].concat())
    }

    /// Ends and removes a container.
    ///
    /// # Errors
    /// podman refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.run(&["rm", "--force", "--time", "0", name]).map(drop)
    }
}

fn configuration(bin_dir: &Path, conf_dir: &Path) -> String {
    let (bin_dir, conf_dir) = (bin_dir.display(), conf_dir.display());
    format!(
        r#"[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"

[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin_dir}"]
network_config_dir = "{conf_dir}"

[containers]
apparmor_profile = "unconfined"
log_driver = "k8s-file"
"#
    )
}
