//! The doers of the weave agent and the command line that starts and asks it.

pub mod cli;
pub mod config;
pub mod control;
pub mod http;
pub mod identity;
pub mod peer;
pub mod render;
pub mod store;
pub mod task;
