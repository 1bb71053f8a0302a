//! Placeholder.
pub mod firewall;
pub mod net;
