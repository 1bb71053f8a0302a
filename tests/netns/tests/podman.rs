//! podman's CNI back end drives the plugin: containers of two nodes talk, and leave nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use weave_netns::containerd::image;
use weave_netns::probe::{self, Server};
use weave_netns::{Host, Podman, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn containers_of_podman_on_two_nodes_reach_each_other_and_free_their_addresses() {
    run_in_lab(|lab| {
        let image = image(lab)?;
        let hosts = lab.mesh(&["one", "two"])?;
        let (one, two) = (&hosts[0], &hosts[1]);
        let mut podmans = Vec::new();
        for host in [one, two] {
            host.setup_cni()?;
            podmans.push(Podman::start(host, &image)?);
        }
        let links = one.links()?;
        let id = podmans[0].container("left", &["--publish", &format!("8080:{}", probe::PORT)])?;
        podmans[1].container("right", &[])?;
        let (left, right) = (podmans[0].address("left")?, podmans[1].address("right")?);
        wait_addresses(one, &[(&id, left)])?;
        eventually(PATIENCE, "containers reach each other", || {
            podmans[0].exec("left", &["ping", "-c1", "-W1", &right.to_string()])?;
            podmans[1].exec("right", &["ping", "-c1", "-W1", &left.to_string()])
        })?;
        let namespace = podmans[0].ns("left")?;
        let _server = Server::start(&namespace, "left", probe::PORT)?;
        probe::reach(&podmans[1].ns("right")?, (left, probe::PORT).into(), "left")?;
        let answer = eventually(PATIENCE, "the published port answers", || {
            probe::ask_tcp(&*two.ns()?, (one.address(), 8080).into())
        })?;
        ensure!(answer.server == "left", "{answer:?}");
        podmans[0].remove("left")?;
        podmans[1].remove("right")?;
        for host in [one, two] {
            wait_addresses(host, &[])?;
        }
        ensure!(one.links()? == links, "podman rm left links: {:?}", one.links()?);
        Ok(())
    });
}

/// Waits until weave has given out these addresses to these containers and no others.
fn wait_addresses(host: &Host, expected: &[(&String, Ipv4Addr)]) -> Result<()> {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(id, address)| ((*id).clone(), address.to_string())).collect();
    eventually(PATIENCE, "weave and podman agree about addresses", || {
        let given = host.allocations()?;
        ensure!(given == expected, "weave says {given:?}, podman {expected:?}");
        Ok(())
    })
}
