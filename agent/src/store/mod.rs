//! What must be kept.
