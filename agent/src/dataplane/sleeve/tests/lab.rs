//! Two namespaces, A and B, joined by a veth pair, or three in a row. Gone when dropped, also when a test fails.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
    /// Behind B, and out of A's reach.
    C,
}

impl Side {
    pub(super) fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    pub(super) fn digit(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::C => 3,
        }
    }
}

pub(super) struct Lab {
    name: String,
    sides: &'static [Side],
}

impl Lab {
    /// A and B. None where there is no right to make namespaces.
    pub(super) fn new(test: &str) -> Option<Self> {
        let lab = Self::with(test, &[Side::A, Side::B])?;
        lab.join((Side::A, "veth0"), (Side::B, "veth0"));
        Some(lab)
    }

    /// A, B and C in a row: A and C reach B alone.
    pub(super) fn row(test: &str) -> Option<Self> {
        let lab = Self::with(test, &[Side::A, Side::B, Side::C])?;
        lab.join((Side::A, "veth0"), (Side::B, "veth0"));
        lab.join((Side::C, "veth0"), (Side::B, "veth1"));
        Some(lab)
    }

    fn with(test: &str, sides: &'static [Side]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
            println!("skipped: needs root");
            return None;
        }
        let lab = Self { name: format!("sl-{}-{test}", std::process::id()), sides };
        for &side in sides {
            shell(&format!("ip netns add {}", lab.namespace(side)));
            lab.run(side, "ip link set lo up");
        }
        Some(lab)
    }

    /// Joins two sides; the network is that of the first.
    fn join(&self, (one, link): (Side, &str), (other, other_link): (Side, &str)) {
        let (a, b) = (self.namespace(one), self.namespace(other));
        shell(&format!("ip -n {a} link add {link} type veth peer name {other_link} netns {b}"));
        for (side, link) in [(one, link), (other, other_link)] {
            self.run(side, &format!("ip addr add {}/24 dev {link}", self.outer_towards(side, one)));
            self.run(side, &format!("ip link set {link} up"));
        }
    }

    fn namespace(&self, side: Side) -> String {
        format!("{}-{side:?}", self.name)
    }

    pub(super) fn outer(&self, side: Side) -> Ipv4Addr {
        self.outer_towards(side, side)
    }

    /// The address of `side` in the network that it shares with `other`.
    pub(super) fn outer_towards(&self, side: Side, other: Side) -> Ipv4Addr {
        let net = if side == Side::C || other == Side::C { 78 } else { 77 };
        Ipv4Addr::new(192, 168, net, side.digit())
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
        for &side in self.sides {
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
