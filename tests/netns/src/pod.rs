//! A pod: a namespace that the shim attached.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cni::{self, Call, INTERFACE};
use crate::host::Host;
use crate::ns::Netns;
use crate::probe::{PORT, Server};

/// The CNI version of ordinary pods: the newest that Debian's containerd speaks.
const CNI_VERSION: &str = "1.0.0";

/// An attached pod. Dropping it deletes its namespace without telling the shim, as a crashed node does;
/// [`Self::detach`] is the ordinary end.
#[derive(Debug)]
pub struct Pod {
    name: String,
    container: String,
    namespace: Netns,
    address: Ipv4Addr,
    result: Value,
    conf: Value,
}

impl Pod {
    /// Attaches `namespace` to the network through the shim of `host`.
    ///
    /// # Errors
    /// The shim refuses.
    pub fn attach(host: &Host, namespace: Netns, name: &str) -> Result<Self> {
        let container = namespace.name().to_owned();
        let conf = cni::weave_conf(CNI_VERSION, &host.run_dir());
        let call = Call {
            plugin: host.shim_program.clone(),
            verb: "ADD",
            container: &container,
            netns: Some(namespace.path()),
            interface: INTERFACE,
            args: Some(format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={name}")),
            path: Path::new("/nonexistent"),
            input: &conf,
        };
        let result = call.succeed(&*host.ns()?)?;
        let address = cni::first_address(&result)?;
        Ok(Self { name: name.to_owned(), container, namespace, address, result, conf })
    }

    /// Calls another verb for this pod with the result of ADD as `prevResult`.
    ///
    /// # Errors
    /// The shim refuses.
    pub fn call(&self, host: &Host, verb: &str) -> Result<Value> {
        let mut conf = self.conf.clone();
        conf["prevResult"] = self.result.clone();
        let call = Call {
            plugin: host.shim_program.clone(),
            verb,
            container: &self.container,
            netns: Some(self.namespace.path()),
            interface: INTERFACE,
            args: None,
            path: Path::new("/nonexistent"),
            input: &conf,
        };
        call.succeed(&*host.ns()?)
    }

    /// Detaches the pod (DEL) and deletes its namespace.
    ///
    /// # Errors
    /// The shim refuses.
    pub fn detach(self, host: &Host) -> Result<()> {
        self.call(host, "DEL").map(drop)
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its container id.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its namespace.
    #[must_use]
    pub const fn ns(&self) -> &Netns {
        &self.namespace
    }

    /// What ADD answered.
    #[must_use]
    pub const fn result(&self) -> &Value {
        &self.result
    }

    /// The node's end of its veth pair, as ADD named it.
    ///
    /// # Errors
    /// ADD named no interface outside the pod.
    pub fn host_interface(&self) -> Result<String> {
        let interfaces = self.result["interfaces"].as_array().context("no interfaces in the result")?;
        let is_outside = |interface: &&Value| interface["sandbox"].as_str().unwrap_or_default().is_empty();
        interfaces
            .iter()
            .filter(is_outside)
            .filter_map(|interface| interface["name"].as_str())
            .find(|name| *name != "weave")
            .map(str::to_owned)
            .with_context(|| format!("no host interface in {}", self.result))
    }

    /// The MAC address of its interface.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn mac(&self) -> Result<[u8; 6]> {
        self.namespace.mac(INTERFACE)
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

    /// Leaves the pod in place when it is dropped.
    pub const fn keep(&mut self) {
        self.namespace.keep();
    }
}
