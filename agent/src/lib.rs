//! The doers of the weave agent and the command line that starts and asks it.

pub mod dataplane;
