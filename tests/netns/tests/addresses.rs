//! No address is ever given out twice: not across a partition, not through a crash, not at the end of the range.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use weave_netns::lab::others;
use weave_netns::probe;
use weave_netns::seed::Chance;
use weave_netns::wait::pause;
use weave_netns::{Host, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);

/// Who holds which address, over all nodes: the judge.
#[derive(Default)]
struct Register(Mutex<BTreeMap<String, String>>);

impl Register {
    /// Notes a new holder.
    fn taken(&self, pod: &Pod) -> Result<()> {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = holders.insert(pod.address().to_string(), pod.container().to_owned());
        ensure!(before.is_none(), "{} was given to {} and to {before:?}", pod.address(), pod.container());
        Ok(())
    }

    /// Notes that a holder is about to be detached; from now on the address may be given to others.
    fn leaving(&self, pod: &Pod) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.address().to_string());
    }
}

#[test]
fn a_partition_under_load_and_its_healing_give_no_address_twice() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b", "c", "d"], |options| options.range("10.32.0.0/24"))?;
        let (register, ending) = (Register::default(), AtomicBool::new(false));
        let seed = Chance::of_run(lab.settings(), 1).next();
        std::thread::scope(|scope| {
            let loads: Vec<_> = hosts
                .iter()
                .zip(0_u64..)
                .map(|(host, number)| {
                    let (register, ending) = (&register, &ending);
                    scope.spawn(move || load(host, register, Chance::new(seed ^ number), ending))
                })
                .collect();
            pause(Duration::from_secs(2));
            let cut = lab.cut(&[&hosts[0], &hosts[1]], &[&hosts[2], &hosts[3]]);
            pause(Duration::from_secs(6));
            let healed = lab.heal();
            pause(Duration::from_secs(4));
            ending.store(true, Ordering::Relaxed);
            for load in loads {
                let attached = load.join().map_err(|_| anyhow!("a load panicked"))??;
                ensure!(attached > 10, "a load attached only {attached} pods");
            }
            cut.and(healed)
        })?;
        for host in &hosts {
            host.wait_connected(&others(&hosts, host))?;
            host.wait_ready()?;
        }
        Ok(())
    });
}

#[test]
fn kill_9_at_random_points_loses_no_address_that_was_given_out() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let mut chance = Chance::of_run(lab.settings(), 7);
        let mut alive: Vec<Pod> = vec![hosts[0].pod("first")?];
        for round in 0..10 {
            let moment = Duration::from_millis(chance.below(120));
            let (fresh, killed) = std::thread::scope(|scope| {
                let adding: Vec<_> = (0..3)
                    .map(|number| {
                        scope.spawn({
                            let host = &hosts[0];
                            move || host.pod(&format!("r{round}n{number}"))
                        })
                    })
                    .collect();
                pause(moment);
                let killed = hosts[0].kill_agent();
                // An ADD that died with its agent has failed; its runtime would call DEL and try again.
                let fresh: Vec<_> = adding.into_iter().filter_map(|add| add.join().ok()?.ok()).collect();
                (fresh, killed)
            });
            killed?;
            alive.extend(fresh);
            hosts[0].relaunch()?;
            hosts[0].wait_ready()?;
            let known = hosts[0].allocations()?;
            for pod in &alive {
                let address = pod.address().to_string();
                ensure!(
                    known.get(pod.container()) == Some(&address),
                    "after a kill in round {round} ({moment:?}), {} of {} is forgotten",
                    address,
                    pod.container()
                );
            }
            let next = hosts[0].pod(&format!("r{round}after"))?;
            ensure!(
                alive.iter().all(|pod| pod.address() != next.address()),
                "{} given twice",
                next.address()
            );
            alive.push(next);
        }
        let far = hosts[1].pod("far")?;
        for pod in &alive {
            eventually(PATIENCE, "every pod still talks", || probe::ping(pod.ns(), far.address()))?;
        }
        Ok(())
    });
}

#[test]
fn a_node_that_reboots_keeps_its_name_and_its_ranges_and_frees_what_its_vanished_pods_held() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let identity = |host: &Host| -> Result<_> {
            let ipam = host.status(&["ipam"])?;
            Ok((host.status(&[])?["name"].clone(), ipam["universe"].clone(), ipam["entries"].clone()))
        };
        let before = identity(&hosts[0])?;
        let pods: Vec<Pod> =
            (0..5).map(|number| hosts[0].pod(&format!("p{number}"))).collect::<Result<_>>()?;
        drop(pods);
        hosts[0].power_off()?;
        hosts[0].power_on()?;
        hosts[0].relaunch()?;
        hosts[0].wait_ready()?;
        ensure!(identity(&hosts[0])? == before, "{before:?} became {:?}", identity(&hosts[0])?);
        eventually(PATIENCE, "what the vanished pods held is free", || {
            let left = hosts[0].allocations()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        let (fresh, other) = (hosts[0].pod("fresh")?, hosts[1].pod("other")?);
        eventually(PATIENCE, "a new pod talks", || probe::ping(fresh.ns(), other.address()))
    });
}

#[test]
fn at_the_end_of_the_range_an_attachment_is_refused_in_clear_words_until_one_is_given_back() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b"], |options| options.range("10.32.0.0/27"))?;
        let register = Register::default();
        let mut pods = Vec::new();
        let start = Instant::now();
        // The second node's free space has to come over to the first: one node fills the range alone.
        let refusal = loop {
            match hosts[0].pod(&format!("p{}", pods.len())) {
                Ok(pod) => register.taken(&pod)?,
                Err(refusal) => break refusal,
            }
            pods.push(());
            ensure!(pods.len() <= 32, "a range of 32 addresses gave out {}", pods.len());
        };
        ensure!(pods.len() >= 24, "of 32 addresses only {} were given out: {refusal:#}", pods.len());
        ensure!(start.elapsed() < Duration::from_secs(90), "it took {:?}", start.elapsed());
        let told = format!("{refusal:#}");
        ensure!(told.contains("--ipalloc-range"), "the refusal does not name a remedy: {told}");
        Ok(())
    });
}

#[test]
fn an_address_that_is_given_back_at_the_end_of_the_range_is_given_out_again() {
    run_in_lab(|lab| {
        let host = lab.host("alone")?;
        host.launch(&weave_netns::AgentOptions::default().range("10.32.0.0/29"))?;
        host.wait_ready()?;
        let mut pods = Vec::new();
        while let Ok(pod) = host.pod(&format!("p{}", pods.len())) {
            pods.push(pod);
            ensure!(pods.len() <= 8, "a range of 8 addresses gave out {}", pods.len());
        }
        let last = pods.pop().context("not a single address")?;
        let address = last.address();
        last.detach(&host)?;
        let again = eventually(PATIENCE, "the address comes back", || host.pod("again"))?;
        ensure!(again.address() == address, "{} came instead of {address}", again.address());
        Ok(())
    });
}

/// Attaches and detaches pods on one node; an error is fine, a double is not. Returns how many were attached.
fn load(host: &Host, register: &Register, mut chance: Chance, ending: &AtomicBool) -> Result<usize> {
    let (mut pods, mut attached): (Vec<Pod>, usize) = (Vec::new(), 0);
    while !ending.load(Ordering::Relaxed) {
        if pods.len() < 12 && (pods.len() < 4 || chance.below(2) == 0) {
            if let Ok(pod) = host.pod(&format!("p{attached}")) {
                register.taken(&pod)?;
                pods.push(pod);
                attached += 1;
            }
        } else {
            let index = usize::try_from(chance.below(pods.len() as u64))?;
            let pod = pods.swap_remove(index);
            register.leaving(&pod);
            pod.detach(host)?;
        }
    }
    Ok(attached)
}
