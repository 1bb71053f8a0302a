//! Every byte that passes on a link, to be searched: `tcpdump` into a file.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::command;
use crate::ns::Netns;

/// A running recording; ends when dropped.
#[derive(Debug)]
pub struct Recording {
    child: Child,
    file: PathBuf,
}

impl Recording {
    /// Records whole packets that `filter` (in tcpdump's language) lets through on a link into `file`, and returns
    /// once it listens.
    ///
    /// # Errors
    /// `tcpdump` is missing or refuses the filter.
    pub fn start(namespace: &Netns, link: &str, filter: &str, file: &Path) -> Result<Self> {
        // 16 MiB between kernel and tcpdump: what it drops would not be searched.
        let mut command =
            command::words("tcpdump", ["-n", "-U", "-s", "0", "-B", "16384", "-Z", "root", "-i", link]);
        command
            .arg("-w")
            .arg(file)
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = namespace.start(command)?;
        let mut complaints = BufReader::new(child.stderr.take().context("tcpdump without standard error")?);
        let mut told = String::new();
        while !told.contains("listening on") {
            ensure!(complaints.read_line(&mut told)? > 0, "tcpdump on {link}: {}", told.trim());
        }
        std::thread::spawn(move || complaints.lines().count());
        Ok(Self { child, file: file.to_owned() })
    }

    /// Ends the recording and returns it: packets of pods in it lie there as they passed.
    ///
    /// # Errors
    /// `tcpdump` does not end, or its file cannot be read.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::INT).context("ending tcpdump")?;
        self.child.wait().context("waiting for tcpdump")?;
        let bytes = std::fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        let _ = std::fs::remove_file(&self.file);
        Ok(bytes)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often `pattern` is in `bytes`.
#[must_use]
pub fn count(bytes: &[u8], pattern: &[u8]) -> usize {
    let Some(&first) = pattern.first() else { return 0 };
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
    starts.filter(|(at, _)| bytes[*at..].starts_with(pattern)).count()
}
