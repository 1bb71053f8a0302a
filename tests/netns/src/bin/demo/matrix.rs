//! Who reaches whom.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use weave_netns::probe::{self, Server};
use weave_netns::{Host, Pod, eventually};

/// How long the network may take to be whole.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pod that serves.
pub(crate) struct Tenant {
    name: String,
    node: String,
    server: Server,
    pod: Pod,
}

impl Tenant {
    /// Attaches a pod and starts its server.
    pub(crate) fn attach(host: &Host, name: &str) -> Result<Self> {
        let pod = host.pod(name)?;
        let server = pod.serve()?;
        Ok(Self { name: format!("{}/{name}", host.name()), node: host.name().to_owned(), server, pod })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.pod.address()
    }

    pub(crate) fn netns(&self) -> &str {
        self.pod.ns().name()
    }

    /// Leaves the pod up; its server ends with this program.
    pub(crate) fn keep(self) {
        let Self { mut pod, server, .. } = self;
        drop(server);
        pod.keep();
    }

    /// `ok`, or what does not work.
    fn to(&self, other: &Self) -> &'static str {
        let pings = probe::ping(self.pod.ns(), other.address()).is_ok();
        let answer = probe::ask_tcp(self.pod.ns(), other.pod.service());
        let right = answer.is_ok_and(|answer| answer.server == other.pod.name());
        match (pings, right) {
            (true, true) => "ok",
            (true, false) => "no TCP",
            (false, true) => "no ping",
            (false, false) => "-",
        }
    }
}

/// Prints the matrix, and fails if it is not whole in time.
pub(crate) fn whole(tenants: &[Tenant]) -> Result<()> {
    let mut shown = String::new();
    let result = eventually(PATIENCE, "every pod reaches every other", || {
        let (text, gaps) = matrix(tenants);
        shown = text;
        if gaps > 0 {
            bail!("{gaps} of {} pairs fail", tenants.len() * tenants.len())
        }
        Ok(())
    });
    print!("{shown}");
    result
}

fn matrix(tenants: &[Tenant]) -> (String, usize) {
    let width = tenants.iter().map(|tenant| tenant.name().len()).max().unwrap_or(0);
    let row = |head: &str, cells: &[&str]| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:<width$}")).collect();
        format!("{head:<width$}{}\n", cells.trim_end())
    };
    let names: Vec<_> = tenants.iter().map(Tenant::name).collect();
    let (mut text, mut gaps) = (row("", &names), 0);
    for from in tenants {
        let cells: Vec<_> = tenants.iter().map(|to| from.to(to)).collect();
        gaps += cells.iter().filter(|cell| **cell != "ok").count();
        text.push_str(&row(from.name(), &cells));
    }
    (text, gaps)
}
