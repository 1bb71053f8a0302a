//! What moves pods' packets without the kernel's own tunnels.
//!
//! * [`tun`]: the device `weave-tun`, through which the kernel hands over packets for peers;
//! * [`driver`]: sessions made and ended with the links to peers, probes sent and answered;
//! * [`sleeve`]: the engine that carries them in sealed UDP records;
//! * `sys`: the system calls that neither the standard library nor rustix has, the one place with `unsafe`.
//!
//! No decision is made here. The engine is given tables and moves packets by them.

pub mod driver;
pub mod sleeve;
mod sys;
pub mod tun;
