//! What the CNI shim and the CLI tell the agent of their own node, and what it answers: JSON, one document a
//! line, over a unix socket that only root can open.

pub mod cni;
pub mod control;
pub mod status;
