//! What really passes on a link: `tcpdump`, as text.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::command;
use crate::ns::Netns;
use crate::wait::eventually_true;

/// A running capture; ends when dropped.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures what `filter` (in tcpdump's language) lets through on a link, and returns once it listens.
    ///
    /// # Errors
    /// `tcpdump` is missing or refuses the filter.
    pub fn start(namespace: &Netns, link: &str, filter: &str) -> Result<Self> {
        Self::directed(namespace, link, filter, "inout", &[])
    }

    /// The same with what the packets hold, as far as it is text.
    ///
    /// # Errors
    /// `tcpdump` is missing or refuses the filter.
    pub fn contents(namespace: &Netns, link: &str, filter: &str) -> Result<Self> {
        Self::directed(namespace, link, filter, "inout", &["-A", "-s", "0"])
    }

    /// The same for what arrives only, not for what the namespace itself sends.
    ///
    /// # Errors
    /// `tcpdump` is missing or refuses the filter.
    pub fn inbound(namespace: &Netns, link: &str, filter: &str) -> Result<Self> {
        Self::directed(namespace, link, filter, "in", &[])
    }

    fn directed(namespace: &Netns, link: &str, filter: &str, direction: &str, more: &[&str]) -> Result<Self> {
        let mut command = command::words("tcpdump", ["-n", "-e", "-l", "-U", "--immediate-mode", "-i", link]);
        command
            .args(more)
            .args(["-Q", direction, filter])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = namespace.start(command)?;
        let complaints = child.stderr.take().context("tcpdump without standard error")?;
        let mut told = String::new();
        let mut complaints = BufReader::new(complaints);
        while !told.contains("listening on") {
            ensure!(complaints.read_line(&mut told)? > 0, "tcpdump on {link}: {}", told.trim());
        }
        // tcpdump tells its counts at the end; the pipe must stay open until then, and it holds that much.
        std::thread::spawn(move || complaints.lines().count());
        let output = child.stdout.take().context("tcpdump without standard output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, lines, reader: Some(reader) })
    }

    /// What was captured so far, a packet a line.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something was captured.
    ///
    /// # Errors
    /// Nothing was in time.
    pub fn wait(&self, deadline: Duration) -> Result<()> {
        eventually_true(deadline, "a packet is captured", || !self.lines().is_empty())
    }

    /// Ends the capture and returns all of it.
    ///
    /// # Errors
    /// `tcpdump` does not end.
    pub fn finish(mut self) -> Result<Vec<String>> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::INT).context("ending tcpdump")?;
        self.child.wait().context("waiting for tcpdump")?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(self.lines())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
