//! Two namespaces, A and B, joined by a veth pair. Gone when dropped, also when a test fails.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    pub(super) fn digit(self) -> u8 {
        if self == Self::A { 1 } else { 2 }
    }
}

pub(super) struct Lab {
    name: String,
}

impl Lab {
    /// None where there is no right to make namespaces.
    pub(super) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
            println!("skipped: needs root");
            return None;
        }
        let lab = Self { name: format!("sl-{}-{test}", std::process::id()) };
        for side in [Side::A, Side::B] {
            shell(&format!("ip netns add {}", lab.namespace(side)));
        }
        let (a, b) = (lab.namespace(Side::A), lab.namespace(Side::B));
        shell(&format!("ip -n {a} link add veth0 type veth peer name veth0 netns {b}"));
        for side in [Side::A, Side::B] {
            lab.run(side, &format!("ip addr add {}/24 dev veth0", lab.outer(side)));
            lab.run(side, "ip link set veth0 up");
            lab.run(side, "ip link set lo up");
        }
        Some(lab)
    }

    fn namespace(&self, side: Side) -> String {
        format!("{}-{side:?}", self.name)
    }

    pub(super) fn outer(&self, side: Side) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, side.digit())
    }

    pub(super) fn run(&self, side: Side, command: &str) {
        shell(&format!("ip netns exec {} {command}", self.namespace(side)));
    }

    /// Does something in the namespace: sockets and devices made there stay there.
    pub(super) fn inside<T: Send>(&self, side: Side, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace(side));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let file = std::fs::File::open(path).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for side in [Side::A, Side::B] {
            let _: Result<_, _> = Command::new("ip").args(["netns", "del", &self.namespace(side)]).status();
        }
    }
}

fn shell(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until `condition` holds, and fails if it does not within five seconds.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within five seconds: {what}");
        std::thread::yield_now();
    }
}
