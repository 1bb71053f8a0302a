//! The systemd unit under a systemd of its own, which is the first process of a node with nothing else on it.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::settings::Settings;
use weave_netns::wait::eventually;
use weave_netns::{Host, cgroup, command, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(30);
/// The unit as an administrator installs it.
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weave.service");

/// Goes into the group $1 and starts over with everything private.
const ENTER: &str = r#"set -eu
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
    if [ -e "$hierarchy/cgroup.procs" ]; then mkdir -p "$hierarchy/$1"; echo $$ > "$hierarchy/$1/cgroup.procs"; break; fi
done
exec unshare --fork --kill-child --pid --mount --cgroup --uts --propagation private bash -c "$2" boot "$3" "$4""#;

/// A system of the binaries in $1 and the unit $2, with bare targets in the place of the machine's own units.
const BOOT: &str = r#"set -eu
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
if [ -e /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
for folder in /var/lib /usr/local/bin /lib/systemd/system /etc/systemd /opt; do mount -t tmpfs tmpfs $folder; done
mkdir -p /etc/systemd/system
cp "$1/weave" "$1/weave-net" /usr/local/bin/
for target in sysinit basic shutdown umount network-online sockets timers paths slices local-fs; do
    printf '[Unit]\nDefaultDependencies=no\n' > /lib/systemd/system/$target.target
done
cp "$2" /lib/systemd/system/weave.service
mkdir /lib/systemd/system/weave.service.d
printf '[Service]\nStandardError=append:/var/lib/weave.log\n' > /lib/systemd/system/weave.service.d/log.conf
export container=lxc
exec /lib/systemd/systemd --system --unit=weave.service --log-target=console --show-status=0 --default-standard-output=null"#;

/// A node whose first process is systemd. Everything there ends with it.
struct Booted {
    unshare: Child,
    group: String,
}

impl Booted {
    fn start(host: &Host, settings: &Settings) -> Result<Self> {
        ensure!(Path::new("/lib/systemd/systemd").is_file(), "systemd is missing: run `make tools`");
        let group = host.label();
        let binaries = settings.binaries.display().to_string();
        let mut command = command::words("bash", ["-c", ENTER, "enter", &group, BOOT, &binaries, UNIT]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Ok(Self { unshare: host.ns()?.start(command)?, group })
    }

    /// Runs a line of shell there.
    fn run(&self, line: &str) -> Result<String> {
        let parent = self.unshare.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let init = children.split_whitespace().next().context("systemd has not started")?;
        command::succeed(command::words("nsenter", ["-a", "-t", init, "bash", "-c", line]), "")
    }

    fn is_ready(&self) -> Result<()> {
        let ready = self.run("systemctl is-active weave && weave status && test -S /run/weave/cni.sock");
        ready.map(drop).with_context(|| self.run("tail -n 20 /var/lib/weave.log").unwrap_or_default())
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let group = &self.group;
        let _ = eventually(PATIENCE, "the control group is empty", || {
            cgroup::starting_with(group).iter().try_for_each(|group| Ok(cgroup::remove(group)?))
        });
    }
}

#[test]
fn the_systemd_unit_starts_and_restarts_the_agent_whose_network_outlives_a_stop() {
    run_in_lab(|lab| {
        let host = lab.host("node")?;
        let node = Booted::start(&host, lab.settings())?;
        eventually(PATIENCE, "the unit is active and the agent ready", || node.is_ready())?;
        let said = node.run("mkdir -p /run/etc && weave setup-cni --conf-dir /run/etc 2>&1")?;
        ensure!(
            said.contains("installed /opt/cni/bin/weave-net") && said.contains("10-weave.conflist"),
            "{said}"
        );

        node.run("kill -9 $(pidof weave)")?;
        eventually(PATIENCE, "systemd starts it again", || {
            let shown = node.run("systemctl show weave -p NRestarts")?;
            ensure!(shown.trim() == "NRestarts=1", "{shown}");
            node.is_ready()
        })?;
        node.run("systemctl stop weave")?;
        ensure!(node.run("systemctl is-active weave").is_err(), "it is active after a stop");
        for link in ["weave", "weave-vx"] {
            ensure!(host.ns()?.has_link(link)?, "{link} went with the agent");
        }
        node.run("test -S /run/weave/cni.sock").context("the sockets' folder went with the agent")?;
        node.run("systemctl start weave")?;
        eventually(PATIENCE, "it is started again", || node.is_ready())
    });
}
