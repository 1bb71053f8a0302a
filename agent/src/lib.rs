//! Placeholder.

pub mod cni;
