//! What the tests of the shim share: running it, an agent that says what it is told, a small node with a bridge.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stderr,
    reason = "every test file uses its own part of this"
)]

pub mod fake_agent;
pub mod lab;
pub mod libcni;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Every version of the specification.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The program under test.
pub const SHIM: &str = env!("CARGO_BIN_EXE_weave-net");

/// What a run of a plugin left behind.
#[derive(Debug, Clone)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The document of a success.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        self.json()
    }

    /// Checks a success that prints nothing.
    #[track_caller]
    pub fn silent_success(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (0, ""), "{self:?}");
    }

    /// The code and message of a failure.
    #[track_caller]
    pub fn error(&self) -> (u64, String) {
        assert_eq!(self.code, 1, "{self:?}");
        let document = self.json();
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        assert!(VERSIONS.contains(&text("cniVersion").as_str()), "an error carries a cniVersion: {document}");
        (document["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")).trim().to_owned())
    }
}

/// Runs a plugin with exactly these variables, in the namespace of the calling thread.
pub fn run(program: &Path, name: &str, env: &[(&str, &str)], stdin: &[u8]) -> Ran {
    use std::os::unix::process::CommandExt;
    let begun = Instant::now();
    let mut child = Command::new(program)
        .arg0(name)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _not_read = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took: begun.elapsed(),
    }
}

/// Runs the shim as `weave-net`.
pub fn weave_net(env: &[(&str, &str)], conf: &Value) -> Ran {
    run(Path::new(SHIM), "weave-net", env, conf.to_string().as_bytes())
}

/// Runs the shim as `weave-ipam`.
pub fn weave_ipam(env: &[(&str, &str)], conf: &Value) -> Ran {
    run(Path::new(SHIM), "/opt/cni/bin/weave-ipam", env, conf.to_string().as_bytes())
}

/// A folder for one test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("cn-").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The tombstones left here.
    pub fn tombstones(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.join("cni/del")) else { return Vec::new() };
        let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

/// Whether tests that make namespaces can run. In CI they must.
pub fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} needs root, and CI must not skip it"
    );
    eprintln!("skipped: {test} needs root");
    false
}
