//! Services as their makers mean them: through a real kube-proxy, for DNS, for an ingress controller, for clients from
//! outside. Starting a cluster takes a minute, so one test looks at all of it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weave_k8s::asking::{HTTP, from_node};
use weave_k8s::cluster::{PATIENCE, container, pod};
use weave_k8s::{Cluster, image};
use weave_netns::run_in_lab;
use weave_netns::wait::eventually;

const NODES: [&str; 2] = ["node1", "node2"];
/// The address at which the kubelets tell pods to ask for names.
const DNS: &str = "10.96.0.10";
/// Ports of the nodes: of a Service of either policy, and of the proxy of an ingress controller.
const CLUSTER_PORT: u16 = 30080;
const LOCAL_PORT: u16 = 30081;
const INGRESS_PORT: u16 = 30090;
/// The port of the ingress controller's own node.
const INGRESS_HOST_PORT: u16 = 8888;

#[test]
fn services_serve_pods_nodes_and_strangers_with_a_dns_server_and_an_ingress_proxy_behind_them() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        cluster.install()?;
        cluster.wait_ready()?;
        let server = cluster.pod("server", "node1")?;
        let (client, beside) = (cluster.pod("client", "node2")?, cluster.pod("beside", "node1")?);
        for (name, policy, port) in [("server", "Cluster", CLUSTER_PORT), ("local", "Local", LOCAL_PORT)] {
            cluster.kubectl().apply(&node_port(name, policy, port).to_string())?;
        }
        let addresses = [("client", client.as_str()), ("beside", beside.as_str())];
        for random_fully in [true, false] {
            // An iptables that is too old for the flag makes kube-proxy do without.
            let version = if random_fully { None } else { Some("1.6.1") };
            cluster.nodes().iter().try_for_each(|node| node.restart_proxy(version))?;
            eventually(PATIENCE, &format!("Services work; --random-fully: {random_fully}"), || {
                let rules = cluster.node("node1")?.run("iptables-save", &["-t", "nat"])?;
                ensure!(rules.contains("--random-fully") == random_fully, "{rules}");
                services_work(&cluster, &addresses)
            })
            .with_context(|| cluster.diagnosis())?;
        }
        names_are_resolved_through_a_service(&cluster)?;
        a_proxy_on_a_host_port_and_a_node_port_leads_to_pods(&cluster)?;
        the_bandwidth_annotations_limit(&cluster)?;
        ensure!(cluster.address("server")? == server, "the server's pod was replaced");
        Ok(())
    });
}

fn node_port(name: &str, policy: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": "NodePort",
            "externalTrafficPolicy": policy,
            "selector": {"app": "server"},
            "ports": [{"port": 80, "targetPort": HTTP, "nodePort": port}],
        },
    })
}

fn services_work(cluster: &Cluster, pods: &[(&str, &str)]) -> Result<()> {
    let (service, stranger) = (cluster.service("server")?, cluster.plane().host());
    for (pod, address) in pods {
        let seen = cluster.seen(pod, &service, 80)?;
        ensure!(seen == *address, "{pod} has {address} and is seen as {seen} behind a Service");
    }
    ensure!(cluster.who("server", &service, 80)? == "server", "a pod does not reach itself");
    for node in cluster.nodes() {
        from_node(node.host(), &service, 80, "hostname").context("a node asks a Service")?;
        let own = node.host().address().to_string();
        from_node(stranger, &own, CLUSTER_PORT, "hostname").context("a stranger asks a node port")?;
    }
    let at = |node: usize| cluster.nodes()[node].host().address().to_string();
    let (seen, own) = (from_node(stranger, &at(0), LOCAL_PORT, "clientip")?, stranger.address().to_string());
    ensure!(seen == own, "a stranger is seen as {seen} where the policy is Local");
    ensure!(from_node(stranger, &at(1), LOCAL_PORT, "clientip").is_err(), "a node without the pod answers");
    // A client from outside of the pods' range that a router leads to the Service's address: cluster-cidr tells it from
    // pods, and it is masqueraded.
    let router = at(1);
    stranger.ns()?.ip(&format!("route replace {service}/32 via {router}"))?;
    let seen =
        from_node(stranger, &service, 80, "clientip").context("a stranger asks a Service by a route")?;
    ensure!(seen != own, "a client from outside is not told from a pod");
    Ok(())
}

/// As CoreDNS does it: a pod with an address of the range behind a Service, UDP and TCP.
fn names_are_resolved_through_a_service(cluster: &Cluster) -> Result<()> {
    let record = format!("--host-record=server.default.svc.cluster.local,{}", cluster.service("server")?);
    let mut dns = pod("dns", "node1");
    dns["spec"]["dnsPolicy"] = json!("Default");
    dns["spec"]["containers"][0] = json!({
        "name": "dns", "image": image::TOOLS, "imagePullPolicy": "Never",
        "command": ["/usr/sbin/dnsmasq", "--keep-in-foreground", "--user=root", "--no-resolv", "--no-hosts",
            "--pid-file=", "--log-facility=-", "--local=/cluster.local/", record],
        "readinessProbe": {"tcpSocket": {"port": 53}, "periodSeconds": 1},
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns"},
        "spec": {"clusterIP": DNS, "selector": {"app": "dns"}, "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53, "protocol": "TCP"},
        ]},
    });
    // The C library asks by TCP alone when it is told to.
    let mut by_tcp = pod("by-tcp", "node2");
    by_tcp["spec"]["dnsConfig"] = json!({"options": [{"name": "use-vc"}]});
    for document in [&dns, &service, &by_tcp] {
        cluster.kubectl().apply(&document.to_string())?;
    }
    cluster.address("dns")?;
    cluster.address("by-tcp")?;
    for pod in ["client", "beside", "by-tcp"] {
        eventually(PATIENCE, &format!("{pod} resolves a name"), || {
            let shown = cluster.get(pod, "http://server/hostname")?;
            ensure!(shown == "server", "{shown} answered");
            Ok(())
        })?;
    }
    Ok(())
}

/// As ingress controllers do it: a proxy that the world reaches at a port of its node and of every node, and that asks
/// a Service.
fn a_proxy_on_a_host_port_and_a_node_port_leads_to_pods(cluster: &Cluster) -> Result<()> {
    let mut ingress = pod("ingress", "node2");
    let command = format!("exec nc -ll -p {HTTP} -e nc {} 80", cluster.service("server")?);
    ingress["spec"]["containers"][0] = json!({
        "name": "proxy", "image": image::TOOLS, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", command],
        "ports": [{"containerPort": HTTP, "hostPort": INGRESS_HOST_PORT}],
    });
    let mut service = node_port("ingress", "Cluster", INGRESS_PORT);
    service["spec"]["selector"] = json!({"app": "ingress"});
    for document in [&ingress, &service] {
        cluster.kubectl().apply(&document.to_string())?;
    }
    cluster.address("ingress")?;
    let [one, two] = [0, 1].map(|node| cluster.nodes()[node].host().address().to_string());
    for (address, port) in [(&two, INGRESS_HOST_PORT), (&one, INGRESS_PORT), (&two, INGRESS_PORT)] {
        eventually(PATIENCE, "the proxy leads to the server", || {
            let shown = from_node(cluster.plane().host(), address, port, "hostname")?;
            ensure!(shown == "server", "{shown} answered at {address}:{port}");
            Ok(())
        })?;
    }
    Ok(())
}

fn the_bandwidth_annotations_limit(cluster: &Cluster) -> Result<()> {
    let mut slow = pod("slow", "node1");
    slow["metadata"]["annotations"] =
        json!({"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"});
    slow["spec"]["containers"] = json!([container()]);
    cluster.kubectl().apply(&slow.to_string())?;
    cluster.address("slow")?;
    let limits = cluster.node("node1")?.host().ns()?.run("tc qdisc show")?;
    for rate in ["rate 8Mbit", "rate 16Mbit"] {
        ensure!(limits.lines().any(|line| line.contains("tbf") && line.contains(rate)), "{limits}");
    }
    ensure!(cluster.who("client", &cluster.address("slow")?, HTTP)? == "slow", "it does not answer");
    Ok(())
}
