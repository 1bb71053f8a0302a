//! What Weave Net leaves on a node: imitated from what its documentation and its users tell, without Open vSwitch, which
//! the test machine's kernel lacks.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::fingerprint::difference;
use weave_netns::wait::eventually;
use weave_netns::{AgentOptions, Host, command, run_in_lab};

/// How long an agent may take to try again what stood in its way.
const PATIENCE: Duration = Duration::from_secs(60);

/// What other people have in the same tables and sets. It must stay, and so must a rule about the bridge that is not
/// quite Weave Net's.
const OTHERS: &str = "*filter\n:KUBE-FORWARD -\n:WEAVER -\n-A FORWARD -j KUBE-FORWARD\n-A INPUT -i weave -j WEAVER\n\
    -A FORWARD -s 192.0.2.0/24 -o weave -j DROP\nCOMMIT\n\
    *nat\n:KUBE-POSTROUTING -\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n";

/// The rules of a node with network policies.
const RULES: &str = "*filter\n:WEAVE-NPC -\n:WEAVE-NPC-DEFAULT -\n:WEAVE-NPC-EGRESS -\n:WEAVE-CANARY -\n:WEAVE-EXPOSE -\n\
    -I FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -I FORWARD -i weave ! -o weave -j ACCEPT\n\
    -I FORWARD -o weave -j DROP\n\
    -I FORWARD -o weave -m conntrack --ctstate NEW -j NFLOG --nflog-group 86\n\
    -I FORWARD -o weave -m comment --comment \"NOTE: this must go before '-j KUBE-FORWARD'\" -j WEAVE-NPC\n\
    -I FORWARD -i weave -m comment --comment \"NOTE: this must go before '-j KUBE-FORWARD'\" -j WEAVE-NPC-EGRESS\n\
    -A INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 6784 -m addrtype ! --src-type LOCAL -m conntrack ! --ctstate \
    RELATED,ESTABLISHED -m comment --comment \"Block non-local access to Weave Net control port\" -j DROP\n\
    -A INPUT -i weave -j WEAVE-NPC-EGRESS\n\
    -A WEAVE-NPC -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A WEAVE-NPC -m conntrack --ctstate NEW -j WEAVE-NPC-DEFAULT\n\
    -A WEAVE-NPC-DEFAULT -m set --match-set weave-k?Z;25^M}|1s7P3|H9i;*;MhG dst -j ACCEPT\n\
    -A WEAVE-EXPOSE -d 10.32.0.0/12 -j ACCEPT\nCOMMIT\n\
    *nat\n:WEAVE -\n:WEAVE-CANARY -\n-A POSTROUTING -j WEAVE\n\
    -A WEAVE -m set --match-set weaver-no-masq-local dst -j RETURN\n\
    -A WEAVE -s 10.32.0.0/12 ! -d 10.32.0.0/12 -j MASQUERADE\nCOMMIT\n";

/// Its sets, one of which holds another.
const SETS: &str = "create weave-k?Z;25^M}|1s7P3|H9i;*;MhG hash:ip\n\
    create weave-all list:set size 8\nadd weave-all weave-k?Z;25^M}|1s7P3|H9i;*;MhG\n\
    create weaver-no-masq-local hash:net\nadd weaver-no-masq-local 10.40.0.0/13\n";

fn leave(host: &Host) -> Result<()> {
    let node = host.ns()?;
    for line in [
        "link add weave type bridge",
        "addr add 10.40.0.0/12 dev weave",
        "link set weave up",
        "link add vethwe-bridge type veth peer name vethwe-datapath",
        "link set vethwe-bridge master weave up",
        "link set vethwe-datapath up",
        "link add vxlan-6784 type vxlan external dstport 6784",
        "link set vxlan-6784 up",
    ] {
        node.ip(line)?;
    }
    node.succeed(command::line("ipset restore"), SETS)?;
    for program in ["iptables-nft-restore", "iptables-legacy-restore"] {
        node.succeed(command::words(program, ["--noflush"]), RULES).context(program)?;
    }
    for folder in [host.data_dir(), host.cni_bin_dir(), host.cni_conf_dir()] {
        fs::create_dir_all(folder)?;
    }
    fs::write(host.data_dir().join("weave-netdata.db"), "bolt")?;
    fs::write(host.cni_bin_dir().join("weave-plugin-2.8.1"), "a program")?;
    for name in ["weave-net", "weave-ipam"] {
        symlink("weave-plugin-2.8.1", host.cni_bin_dir().join(name))?;
    }
    let network = r#"{"cniVersion":"0.3.0","name":"weave","plugins":[{"name":"weave","type":"weave-net"}]}"#;
    fs::write(host.cni_conf_dir().join("10-weave.conflist"), network)?;
    Ok(())
}

/// Everything that may change: the fingerprint, and what it does not see.
fn everything(host: &Host) -> Result<std::collections::BTreeSet<String>> {
    let mut lines = host.fingerprint()?;
    let node = host.ns()?;
    for look in ["ipset -n list", "iptables-legacy-save"] {
        let shown = node.run(look)?;
        lines.extend(
            shown.lines().filter(|line| !line.starts_with(['#', ':'])).map(|line| format!("{look}: {line}")),
        );
    }
    for folder in [host.data_dir(), host.cni_bin_dir(), host.cni_conf_dir()] {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        lines.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    Ok(lines)
}

fn furnish_with_others(host: &Host) -> Result<()> {
    let node = host.ns()?;
    for program in ["iptables-nft-restore", "iptables-legacy-restore"] {
        node.succeed(command::words(program, ["--noflush"]), OTHERS).context(program)?;
    }
    node.succeed(command::line("ipset restore"), "create others hash:ip\n").map(drop)
}

fn reset_weave_net(host: &Host, more: &[&str]) -> Result<String> {
    let data = format!("--data-dir={}", host.data_dir().display());
    let bin = format!("--bin-dir={}", host.cni_bin_dir().display());
    let conf = format!("--conf-dir={}", host.cni_conf_dir().display());
    host.weave(&[&["reset", "--weave-net", &data, &bin, &conf], more].concat())
}

#[test]
fn what_weave_net_left_is_shown_then_removed_and_nothing_of_anybody_else() {
    run_in_lab(|lab| {
        let host = lab.host("node")?;
        furnish_with_others(&host)?;
        let before = everything(&host)?;
        ensure!(
            reset_weave_net(&host, &[])?.contains("nothing to remove"),
            "it found something on a clean node"
        );
        ensure!(everything(&host)? == before, "looking changed something");

        leave(&host)?;
        let with_leftovers = everything(&host)?;
        let shown = reset_weave_net(&host, &["--dry-run"])?;
        for word in [
            "device weave\n",
            "device vethwe-bridge",
            "device vxlan-6784",
            "chain WEAVE-NPC-EGRESS",
            "iptables-legacy, table nat: chain WEAVE",
            "ipset weave-all",
            "ipset weaver-no-masq-local",
            "10-weave.conflist",
            "weave-plugin-2.8.1",
            "weave-netdata.db",
        ] {
            ensure!(shown.contains(word), "{word} is not in {shown}");
        }
        let after = everything(&host)?;
        ensure!(after == with_leftovers, "showing changed {}", difference(&with_leftovers, &after));

        let said = reset_weave_net(&host, &[])?;
        let after = everything(&host)?;
        ensure!(after == before, "{}\n{said}", difference(&before, &after));
        ensure!(
            shown.replace("would remove", "removed").lines().count() == said.lines().count(),
            "{shown}{said}"
        );
        ensure!(
            reset_weave_net(&host, &[])?.contains("nothing to remove"),
            "it is not done at the second time"
        );
        Ok(())
    });
}

#[test]
fn an_agent_that_was_started_over_weave_nets_leftovers_carries_packets_once_they_are_removed() {
    run_in_lab(|lab| {
        let (one, two) = (lab.host("one")?, lab.host("two")?);
        leave(&one)?;
        one.launch(&AgentOptions::founder(2, &[&two]))?;
        two.launch(&AgentOptions::founder(2, &[&one]))?;
        two.wait_ready()?;
        let said = reset_weave_net(&one, &[])?;
        ensure!(said.contains("removed device vxlan-6784") && !said.contains("device weave\n"), "{said}");
        one.wait_ready()?;
        let (left, right) = (one.pod("left")?, two.pod("right")?);
        eventually(PATIENCE, "pods talk through the tunnel", || {
            left.ns().run(&format!("ping -c1 -W1 {}", right.address()))?;
            let methods = one.status(&["connections"])?.to_string();
            ensure!(methods.contains("fastdp"), "{methods}");
            Ok(())
        })
    });
}
