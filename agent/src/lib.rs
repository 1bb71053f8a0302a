//! The doers.

pub mod identity;
pub mod peer;
pub mod store;
pub mod task;
