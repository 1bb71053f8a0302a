//! Calling CNI plugins as a container runtime does: environment, standard input, standard output.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::command::{self, Finished};
use crate::ns::Netns;

/// The network's name in every configuration of this package.
pub const NETWORK: &str = "weave";
/// The interface's name inside a pod.
pub const INTERFACE: &str = "eth0";

/// One call of one plugin.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The plugin's binary.
    pub plugin: PathBuf,
    /// The verb.
    pub verb: &'a str,
    /// CNI_CONTAINERID.
    pub container: &'a str,
    /// CNI_NETNS; left out when none, empty when empty.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME.
    pub interface: &'a str,
    /// CNI_ARGS.
    pub args: Option<String>,
    /// CNI_PATH.
    pub path: &'a Path,
    /// Standard input.
    pub input: &'a Value,
}

impl Call<'_> {
    /// Calls the plugin inside the node and returns whatever it answered.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn finish(&self, node: &Netns) -> Result<Finished> {
        let mut command = std::process::Command::new(&self.plugin);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", self.path);
        if let Some(netns) = &self.netns {
            command.env("CNI_NETNS", netns);
        }
        if let Some(args) = &self.args {
            command.env("CNI_ARGS", args);
        }
        node.enter(|| command::finish(command, &self.input.to_string()))?
    }

    /// Calls the plugin, which must succeed, and returns its document, `null` when it printed nothing.
    ///
    /// # Errors
    /// The plugin failed, or what it printed is no JSON.
    pub fn succeed(&self, node: &Netns) -> Result<Value> {
        let finished = self.finish(node)?;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        ensure!(finished.success(), "{} {} for {}: {}", self.name(), self.verb, self.container, said.trim());
        if finished.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{} printed no JSON: {said}", self.name()))
    }

    /// Calls the plugin, which must fail as CNI plugins fail, and returns its error document.
    ///
    /// # Errors
    /// The plugin succeeded, or failed without a document.
    pub fn refused(&self, node: &Netns) -> Result<Value> {
        let finished = self.finish(node)?;
        ensure!(!finished.success(), "{} {} should have failed: {}", self.name(), self.verb, finished.stdout);
        let error: Value = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{} failed without a document: {finished:?}", self.name()))?;
        ensure!(error["code"].is_u64() && error["msg"].is_string(), "not a CNI error: {error}");
        Ok(error)
    }

    fn name(&self) -> String {
        self.plugin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The shim's configuration for an agent whose sockets are in `run_dir`.
#[must_use]
pub fn weave_conf(version: &str, run_dir: &Path) -> Value {
    json!({ "cniVersion": version, "name": NETWORK, "type": "weave-net", "runDir": run_dir })
}

/// The first address of a CNI result, of any version.
///
/// # Errors
/// There is none.
pub fn first_address(result: &Value) -> Result<std::net::Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str().or_else(|| result["ip4"]["ip"].as_str());
    let text = text.ok_or_else(|| anyhow!("no address in {result}"))?;
    let (address, _length) = text.split_once('/').with_context(|| format!("{text} has no prefix length"))?;
    address.parse().with_context(|| format!("{address} is no IPv4 address"))
}
