//! What can go wrong, always with the object that it went wrong on.

use std::io;

/// Why the kernel could not be brought to, or asked about, a state.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A netlink socket could not be opened.
    #[error("cannot open a {what} socket: {error}")]
    Socket {
        /// Which netlink family.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot {step}: {error}")]
    Step {
        /// The step, as a sentence that names link and address.
        step: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel could not be asked.
    #[error("cannot list {what}: {error}")]
    Observe {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Something of somebody else's is in the way.
    #[error("{object} is in the way: {reason}")]
    Foreign {
        /// The object, by name.
        object: String,
        /// What it is, and what to do about it.
        reason: String,
    },
    /// The `nft` program failed.
    #[error("nft refused the tables: {0}")]
    Firewall(String),
    /// The `nft` program could not be run.
    #[error("cannot run nft, which applies the firewall tables (install the nftables package): {0}")]
    FirewallProgram(io::Error),
    /// The state itself makes no sense.
    #[error("cannot build the node's network: {0}")]
    BadState(String),
    /// Something of a pod's port is not in force.
    #[error("the port {port} is not in force, it takes to: {missing}")]
    PortIncomplete {
        /// The host interface.
        port: String,
        /// The steps that would put it in force.
        missing: String,
    },
    /// No state has been given yet.
    #[error("the node's network is not set up yet: the agent waits for its own address range")]
    NotReady,
    /// The owner of the kernel state has ended.
    #[error("the thread that owns the node's network has ended")]
    Ended,
}
