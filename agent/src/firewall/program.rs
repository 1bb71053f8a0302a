//! Runs the `nft` program.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use crate::net::NetError;

/// How much of nft's complaint is kept: the first lines name the error, the rest repeats the input.
const COMPLAINT: usize = 600;

/// Applies `text` in one transaction, in the network namespace of the calling thread.
///
/// # Errors
/// nft is not installed, or refused; then nothing has changed.
pub fn apply(text: &str) -> Result<(), NetError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NetError::FirewallProgram)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text.as_bytes()) {
            // nft has ended early; its complaint says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other.map_err(NetError::FirewallProgram)?,
        }
    }
    let output = child.wait_with_output().map_err(NetError::FirewallProgram)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint: String = String::from_utf8_lossy(&output.stderr).chars().take(COMPLAINT).collect();
    Err(NetError::Firewall(complaint.trim_end().to_owned()))
}
