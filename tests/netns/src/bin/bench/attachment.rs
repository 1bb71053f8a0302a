//! ADD and DEL: our shim and agent against Debian's `bridge` and `host-local`.
//!
//! Both keep their records on the same disk; ours is durable before it answers, the reference's is not. The
//! references' configuration is flannel's: hairpin on, the bridge as gateway, masquerading done elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use weave_netns::cni::{self, Call, INTERFACE};
use weave_netns::measure::median;
use weave_netns::ns::Netns;
use weave_netns::settings::Settings;
use weave_netns::{AgentOptions, Host, Lab};

use crate::rows::{Goal, Row};

/// Our ADD may take this part of the reference's time.
const SHARE: f64 = 0.5;
/// Attachments a round, one after the other.
const ONE_BY_ONE: usize = 12;
/// As many pods as a node holds in Kubernetes.
const FULL_NODE: usize = 110;
/// A full node attached at once may take so many seconds.
const FULL_NODE_SECONDS: f64 = 3.0;

/// One way to attach pods.
struct Contender {
    host: Arc<Host>,
    plugin: PathBuf,
    plugins: PathBuf,
    conf: Value,
}

impl Contender {
    fn call(&self, verb: &str, pod: &Netns) -> Result<f64> {
        let call = Call {
            plugin: self.plugin.clone(),
            verb,
            container: pod.name(),
            netns: Some(pod.path()),
            interface: INTERFACE,
            args: None,
            path: &self.plugins,
            input: &self.conf,
        };
        let node = self.host.ns()?;
        let start = Instant::now();
        call.succeed(&node)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// All at once; the seconds until the last has its answer.
    fn call_together(&self, verb: &str, pods: &[Netns]) -> Result<f64> {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| self.call(verb, pod))).collect();
            calls
                .into_iter()
                .try_for_each(|call| call.join().map_err(|_| anyhow!("a call panicked"))?.map(drop))
        })?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// The rows of this part.
pub(crate) fn measure(settings: &Settings, rounds: usize) -> Result<Vec<Row>> {
    let mut settings = settings.clone();
    // Both stores go on the disk that the binaries are on, never into a file system in memory.
    settings.scratch = settings.binaries.join("bench-nodes");
    std::fs::create_dir_all(&settings.scratch).context("making a folder on disk")?;
    let lab = Lab::new(&settings)?;
    let (ours, reference) = (ours(&lab)?, reference(&lab)?);
    let mut rows = one_by_one(&ours, &reference, rounds)?;
    rows.push(full_node(&ours, &reference, rounds)?);
    Ok(rows)
}

fn one_by_one(ours: &Contender, reference: &Contender, rounds: usize) -> Result<Vec<Row>> {
    let mut times = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..rounds {
        let mut round = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for _ in 0..ONE_BY_ONE {
            for (place, contender) in [ours, reference].into_iter().enumerate() {
                let pod = contender.host.bare_pod("bench")?;
                for (verb, values) in ["ADD", "DEL"].iter().zip(&mut round[place]) {
                    values.push(contender.call(verb, &pod)?);
                }
            }
        }
        for (all, one) in times.iter_mut().flatten().zip(round.iter().flatten()) {
            all.push(median(one));
        }
    }
    let [[our_add, our_del], [reference_add, reference_del]] = &times;
    Ok(vec![
        Row::paired("cni_add_p50", "ms", Goal::AtMost(SHARE), our_add, reference_add),
        Row::paired("cni_del_p50", "ms", Goal::None, our_del, reference_del),
    ])
}

/// The reference is measured as well, but the goal is a number of seconds.
fn full_node(ours: &Contender, reference: &Contender, rounds: usize) -> Result<Row> {
    let pods = |contender: &Contender| -> Result<Vec<Netns>> {
        (0..FULL_NODE).map(|_| contender.host.bare_pod("full")).collect()
    };
    let (our_pods, reference_pods) = (pods(ours)?, pods(reference)?);
    let (mut our_times, mut reference_times) = (Vec::new(), Vec::new());
    for _ in 0..rounds.min(5) {
        our_times.push(ours.call_together("ADD", &our_pods)?);
        ours.call_together("DEL", &our_pods)?;
        reference_times.push(reference.call_together("ADD", &reference_pods)?);
        reference.call_together("DEL", &reference_pods)?;
    }
    let slowest = our_times.iter().copied().fold(0.0, f64::max);
    let goal = Goal::AtMost(FULL_NODE_SECONDS / median(&reference_times));
    ensure!(slowest.is_finite(), "no round was measured");
    Ok(Row::paired("cni_add_110", "s", goal, &our_times, &reference_times))
}

fn ours(lab: &Lab) -> Result<Contender> {
    let host = lab.host("weave")?;
    host.launch(&AgentOptions::founder(1, &[]))?;
    host.wait_ready()?;
    let conf = cni::weave_conf("1.0.0", &host.run_dir());
    let plugin = lab.settings().binary("weave-net")?;
    Ok(Contender { host, plugin, plugins: PathBuf::from("/nonexistent"), conf })
}

fn reference(lab: &Lab) -> Result<Contender> {
    let host = lab.host("reference")?;
    let plugins = lab.settings().plugins.clone();
    let plugin = plugins.join("bridge");
    ensure!(plugin.is_file(), "{} is missing: install containernetworking-plugins", plugin.display());
    let conf = reference_conf(&host.data_dir());
    Ok(Contender { host, plugin, plugins, conf })
}

fn reference_conf(store: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
        "ipam": { "type": "host-local", "subnet": "10.244.0.0/16", "dataDir": store },
    })
}
