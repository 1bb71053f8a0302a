//! As much of a container runtime's CNI library as decides what plugins see: the order of a chain, the
//! configuration that each plugin gets, capabilities, the cached result.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::lab::Node;
use super::{Folder, Ran, SHIM, run};

/// Where distributions put the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// A runtime on a node, with one network.
pub struct Runtime<'a> {
    node: &'a Node,
    folder: Folder,
    list: Value,
    cache: RefCell<BTreeMap<String, Cached>>,
}

struct Cached {
    result: Value,
    capabilities: Value,
}

impl<'a> Runtime<'a> {
    /// A runtime with this list; our own plugins in it find the node's agent.
    pub fn new(node: &'a Node, mut list: Value) -> Self {
        let folder = Folder::new();
        for name in ["weave-net", "weave-ipam"] {
            std::os::unix::fs::symlink(SHIM, folder.join(name)).unwrap();
        }
        for plugin in list["plugins"].as_array_mut().unwrap() {
            plugin["runDir"] = json!(node.folder.path());
            plugin["dataDir"] = json!(node.folder.path());
        }
        Self { node, folder, list, cache: RefCell::default() }
    }

    /// CNI_PATH.
    pub fn path(&self) -> String {
        format!("{}:{PLUGINS}", self.folder.path().display())
    }

    /// ADD of every plugin in order; the last result is kept only if all succeed.
    pub fn add(&self, id: &str, netns: &str, capabilities: Value) -> Result<Value, Ran> {
        let mut result = Value::Null;
        for plugin in self.plugins() {
            let ran = self.call("ADD", id, netns, &self.request(plugin, &result, &capabilities));
            if ran.code != 0 {
                return Err(ran);
            }
            result = ran.json();
        }
        let cached = Cached { result: result.clone(), capabilities };
        self.cache.borrow_mut().insert(id.to_owned(), cached);
        Ok(result)
    }

    /// CHECK of every plugin in order, up to the first error.
    pub fn check(&self, id: &str, netns: &str) -> Result<(), Ran> {
        let cache = self.cache.borrow();
        let cached = &cache[id];
        let requests =
            self.plugins().map(|plugin| self.request(plugin, &cached.result, &cached.capabilities));
        self.each("CHECK", id, netns, requests)
    }

    /// DEL of every plugin in reverse, up to the first error; what was kept goes only if all succeed.
    pub fn del(&self, id: &str, netns: &str) -> Result<(), Ran> {
        let requests: Vec<_> = {
            let cache = self.cache.borrow();
            let (result, capabilities) =
                cache.get(id).map_or((&Value::Null, &Value::Null), |kept| (&kept.result, &kept.capabilities));
            // Before 0.4.0 DEL is told nothing of ADD's result.
            let result = if self.list["cniVersion"].as_str() < Some("0.4.0") { &Value::Null } else { result };
            self.plugins().rev().map(|plugin| self.request(plugin, result, capabilities)).collect()
        };
        self.each("DEL", id, netns, requests)?;
        self.cache.borrow_mut().remove(id);
        Ok(())
    }

    /// GC of every plugin with what is kept.
    pub fn gc(&self) -> Result<(), Ran> {
        let cache = self.cache.borrow();
        let valid: Vec<_> = cache.keys().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        let request = |plugin: &Value| {
            let mut request = self.request(plugin, &Value::Null, &Value::Null);
            request["cni.dev/valid-attachments"] = json!(valid);
            request
        };
        self.each("GC", "", "", self.plugins().map(request))
    }

    /// STATUS of every plugin.
    pub fn status(&self) -> Result<(), Ran> {
        self.each(
            "STATUS",
            "",
            "",
            self.plugins().map(|plugin| self.request(plugin, &Value::Null, &Value::Null)),
        )
    }

    fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.list["plugins"].as_array().unwrap().iter()
    }

    fn each(
        &self,
        verb: &str,
        id: &str,
        netns: &str,
        requests: impl IntoIterator<Item = Value>,
    ) -> Result<(), Ran> {
        for request in requests {
            let ran = self.call(verb, id, netns, &request);
            if ran.code != 0 {
                return Err(ran);
            }
        }
        Ok(())
    }

    /// The plugin's object with the list's name and version, the earlier result, and of the capabilities those
    /// that the plugin declares.
    fn request(&self, plugin: &Value, earlier: &Value, capabilities: &Value) -> Value {
        let mut request = plugin.clone();
        request["name"] = self.list["name"].clone();
        request["cniVersion"] = self.list["cniVersion"].clone();
        if !earlier.is_null() {
            request["prevResult"] = earlier.clone();
        }
        let declared = |name: &str| plugin["capabilities"][name] == json!(true);
        let given: Map<_, _> =
            capabilities.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let given: Map<_, _> = given.into_iter().filter(|(name, _)| declared(name)).collect();
        if !given.is_empty() {
            request["runtimeConfig"] = Value::Object(given);
        }
        request
    }

    fn call(&self, verb: &str, id: &str, netns: &str, request: &Value) -> Ran {
        let name = request["type"].as_str().unwrap();
        let found =
            self.path().split(':').map(|dir| PathBuf::from(dir).join(name)).find(|path| path.exists());
        let program = found.unwrap_or_else(|| panic!("no plugin {name} in {}", self.path()));
        let path = self.path();
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till"),
            ("CNI_PATH", path.as_str()),
        ];
        self.node
            .host
            .inside(|| run(&program, program.to_str().unwrap(), &env, request.to_string().as_bytes()))
    }
}
