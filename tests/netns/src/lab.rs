//! The lab: an underlay, the nodes on it, and the promise that nothing is left behind.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::AgentOptions;
use crate::host::{Host, HostOptions};
use crate::leak;
use crate::ns::{self, Netns};
use crate::settings::Settings;
use crate::wait::eventually;

/// How every name of this package starts.
pub const PREFIX: &str = "wv";
/// The bridge that the nodes' uplinks meet at.
pub const BRIDGE: &str = "br0";
/// The nodes' default gateway, an address of the underlay namespace.
pub const GATEWAY: &str = "172.30.0.254";
/// An address behind the gateway: the world outside.
pub const OUTSIDE: &str = "203.0.113.1";

/// Counts the labs of this process, which may run several tests at once.
static LABS: AtomicU32 = AtomicU32::new(0);

/// An underlay and its nodes.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    settings: Settings,
    scratch: PathBuf,
    underlay: Netns,
    hosts: Mutex<Vec<Arc<Host>>>,
    kept: bool,
}

impl Lab {
    /// An empty underlay.
    ///
    /// # Errors
    /// Privileges or tools are missing.
    pub fn new(settings: &Settings) -> Result<Self> {
        leak::sweep(PREFIX, &settings.scratch)?;
        let tag = format!("{PREFIX}{:x}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        Self::named(&tag, settings)
    }

    /// An empty underlay under a name of its own, which no sweep removes.
    ///
    /// # Errors
    /// Privileges or tools are missing, or the name is taken.
    pub fn named(tag: &str, settings: &Settings) -> Result<Self> {
        let tag = tag.to_owned();
        let scratch = settings.scratch.join(&tag);
        std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        let underlay = Netns::create(&format!("{tag}-underlay"))?;
        underlay.sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
        underlay.sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
        underlay.sysctl("net.ipv4.ip_forward", "1")?;
        underlay.ip_batch(&format!(
            "link add {BRIDGE} type bridge mcast_snooping 0\n\
             link set {BRIDGE} up\n\
             addr add {GATEWAY}/24 dev {BRIDGE}\n\
             addr add {OUTSIDE}/32 dev lo\n"
        ))?;
        let settings = settings.clone();
        Ok(Self { tag, settings, scratch, underlay, hosts: Mutex::default(), kept: false })
    }

    /// Removes a lab that was kept: its processes, namespaces and files.
    ///
    /// # Errors
    /// The names cannot be listed.
    pub fn remove(tag: &str, settings: &Settings) -> Result<()> {
        for name in ns::names(&format!("{tag}-"))? {
            leak::remove(&name)?;
        }
        let _ = std::fs::remove_dir_all(settings.scratch.join(tag));
        Ok(())
    }

    /// The start of every name of this lab.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The folder of this lab's files.
    #[must_use]
    pub const fn scratch(&self) -> &PathBuf {
        &self.scratch
    }

    /// What the environment said.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The namespace between the nodes.
    #[must_use]
    pub const fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// A node with an uplink into the underlay, without an agent.
    ///
    /// # Errors
    /// Privileges or tools are missing.
    pub fn host(&self, name: &str) -> Result<Arc<Host>> {
        self.host_with(HostOptions::new(name))
    }

    /// [`Self::host`] with options.
    ///
    /// # Errors
    /// Privileges or tools are missing.
    pub fn host_with(&self, options: HostOptions) -> Result<Arc<Host>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let index = u8::try_from(hosts.len() + 1).context("too many hosts for one lab")?;
        let host = Arc::new(Host::new(self, index, options)?);
        hosts.push(Arc::clone(&host));
        Ok(host)
    }

    /// Nodes whose agents have founded a mesh together, each connected to every other.
    ///
    /// # Errors
    /// They do not find together in time.
    pub fn mesh(&self, names: &[&str]) -> Result<Vec<Arc<Host>>> {
        self.mesh_with(names, |options| options)
    }

    /// [`Self::mesh`] with flags of the test's choice.
    ///
    /// # Errors
    /// They do not find together in time.
    pub fn mesh_with(
        &self,
        names: &[&str],
        choose: impl Fn(AgentOptions) -> AgentOptions,
    ) -> Result<Vec<Arc<Host>>> {
        let hosts: Vec<_> = names.iter().map(|name| self.host(name)).collect::<Result<_>>()?;
        for host in &hosts {
            let others = others(&hosts, host);
            host.launch(&choose(AgentOptions::founder(names.len(), &others)))?;
        }
        for host in &hosts {
            host.wait_ready()?;
            host.wait_connected(&others(&hosts, host))?;
        }
        Ok(hosts)
    }

    /// The nodes so far.
    #[must_use]
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cuts every path between the two groups of nodes, both ways. Cuts add up until [`Self::heal`].
    ///
    /// # Errors
    /// The rules are refused.
    pub fn cut(&self, these: &[&Host], those: &[&Host]) -> Result<()> {
        self.between(these, those, "drop")
    }

    /// Loses `percent` of the packets between the two groups of nodes, both ways.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn lose(&self, percent: u8, these: &[&Host], those: &[&Host]) -> Result<()> {
        self.between(these, those, &format!("numgen random mod 100 < {percent} drop"))
    }

    /// Undoes every cut and loss.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn heal(&self) -> Result<()> {
        self.underlay.nft("table bridge cut\ndelete table bridge cut\n").map(drop)
    }

    /// Puts rules (of nft's bridge family, one a line) in the way of what passes between nodes, in the place of those
    /// of the same name.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn impose(&self, name: &str, rules: &str) -> Result<()> {
        self.underlay
            .nft(&format!(
                "table bridge {name}\ndelete table bridge {name}\ntable bridge {name} {{\n chain forward {{\n\
                 type filter hook forward priority 0;\n{rules}\n }}\n}}\n"
            ))
            .map(drop)
    }

    /// Takes the rules of [`Self::impose`] away.
    ///
    /// # Errors
    /// There are none of that name.
    pub fn lift(&self, name: &str) -> Result<()> {
        self.underlay.nft(&format!("delete table bridge {name}\n")).map(drop)
    }

    /// Ends every process and deletes every namespace and file of this lab, and says what would not go.
    ///
    /// # Errors
    /// Something is left.
    pub fn tear_down(&mut self) -> Result<()> {
        let hosts = std::mem::take(self.hosts.get_mut().unwrap_or_else(PoisonError::into_inner));
        let pids: Vec<_> = hosts.iter().flat_map(|host| host.pids()).collect();
        for host in &hosts {
            host.stop_everything();
        }
        drop(hosts);
        for name in ns::names(&format!("{}-", self.tag))? {
            let _ = ns::delete(&name);
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
        eventually(Duration::from_secs(5), "the lab leaves nothing behind", || {
            leak::check(&self.tag, &self.scratch, &pids)
        })
    }

    /// Leaves everything as it is when this lab is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.underlay.keep();
        for host in self.hosts() {
            host.keep();
        }
    }

    /// What a person would look at after a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        self.hosts().iter().map(|host| host.diagnosis()).collect::<Vec<_>>().join("\n")
    }

    fn between(&self, these: &[&Host], those: &[&Host], verdict: &str) -> Result<()> {
        let set = |hosts: &[&Host]| {
            hosts.iter().map(|host| host.address().to_string()).collect::<Vec<_>>().join(", ")
        };
        let (these, those) = (set(these), set(those));
        self.underlay
            .nft(&format!(
                "table bridge cut {{\n chain forward {{\n  type filter hook forward priority 0;\n\
                 ip saddr {{ {these} }} ip daddr {{ {those} }} {verdict}\n\
                 ip saddr {{ {those} }} ip daddr {{ {these} }} {verdict}\n }}\n}}\n"
            ))
            .map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.tear_down();
        }
    }
}

/// All of `hosts` but `one`.
#[must_use]
pub fn others<'a>(hosts: &'a [Arc<Host>], one: &Host) -> Vec<&'a Host> {
    hosts.iter().map(Arc::as_ref).filter(|host| host.name() != one.name()).collect()
}

/// Runs one test in a lab of its own: skips it where it cannot run, prints what a person would look at when it
/// fails, and fails it when it leaves anything behind.
///
/// # Panics
/// The test failed. (This is where a test's error becomes a failed test.)
#[expect(clippy::panic, clippy::print_stderr, reason = "this is the seam between tests and the test runner")]
pub fn run_in_lab(test: impl FnOnce(&Lab) -> Result<()>) {
    match attempt(test) {
        Ok(Outcome::Passed) => {}
        Ok(Outcome::Skipped(why)) => eprintln!("skipped: {why}"),
        Err(error) => panic!("{}", told(&error)),
    }
}

/// The error and its causes, one a line, without the backtrace, which shows only the laboratory's own bowels.
#[must_use]
pub fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: ")
}

enum Outcome {
    Passed,
    Skipped(&'static str),
}

#[expect(clippy::print_stderr, reason = "the diagnosis belongs beside the failure")]
fn attempt(test: impl FnOnce(&Lab) -> Result<()>) -> Result<Outcome> {
    let settings = Settings::read()?;
    if !rustix::process::geteuid().is_root() {
        anyhow::ensure!(!settings.unattended, "namespace tests need root, and CI=true forbids to skip them");
        return Ok(Outcome::Skipped("namespace tests need root: run `sudo -E make test`"));
    }
    let mut lab = Lab::new(&settings)?;
    let verdict = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&lab)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the test panicked; its message is above")));
    if verdict.is_err() {
        eprintln!("{}", lab.diagnosis());
    }
    let clean = lab.tear_down();
    verdict.and(clean).map(|()| Outcome::Passed)
}
