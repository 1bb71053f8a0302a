//! `make k8s`: a cluster of three nodes with weave on it; with KEEP=1 it stays up for exploring until Enter is pressed.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use weave_k8s::{Cluster, programs};
use weave_netns::lab::{Lab, told};
use weave_netns::settings::Settings;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe cluster failed: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let settings = Settings::read()?;
    ensure!(rustix::process::geteuid().is_root(), "network namespaces need root: run `sudo make k8s`");
    settings.binary("weave")?;
    settings.binary("weave-net")?;
    let mut lab = Lab::new(&settings)?;
    println!("Starting three nodes; this takes about a minute.");
    let cluster = Cluster::start(&lab)?;
    println!("{}", cluster.kubectl().run(&["get", "nodes,pods", "--all-namespaces", "--output=wide"])?);
    println!("{}", cluster.weave("node1", &["status"])?);
    if settings.keep {
        explore(&cluster)?;
    }
    drop(cluster);
    lab.tear_down()
}

fn explore(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.plane().kubeconfig("admin")?;
    println!("The API server is in a network namespace of its own; in another terminal, as root:\n");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!(
        "  alias kubectl='nsenter --net=/run/netns/{} {}'",
        cluster.plane().host().label(),
        programs::program("kubectl")?.display()
    );
    println!("  kubectl get pods -A\n\nImages that the nodes have: {}", weave_k8s::image::TOOLS);
    println!("Press Enter to end the cluster.");
    std::io::stdin().read_line(&mut String::new()).context("waiting for Enter").map(drop)
}
