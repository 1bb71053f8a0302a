//! Firewalls of others.

/// Removes the accept rules.
pub fn remove_accepts() -> Vec<String> {
    Vec::new()
}
