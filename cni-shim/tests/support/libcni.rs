//! A runtime.
