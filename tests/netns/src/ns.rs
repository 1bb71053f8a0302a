//! Network namespaces by name, and threads inside them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{self, Finished};

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// A network namespace that exists as long as this guard, unless it is kept.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Netns {
    /// Makes a new namespace with its loopback device up.
    ///
    /// # Errors
    /// The name is taken, or privileges are missing.
    pub fn create(name: &str) -> Result<Self> {
        command::succeed(command::line(&format!("ip netns add {name}")), "")?;
        let file = File::open(path(name)).with_context(|| format!("opening namespace {name}"))?;
        let namespace = Self { name: name.to_owned(), path: path(name), file, kept: false };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A namespace that somebody else made and will delete, under a name for messages.
    ///
    /// # Errors
    /// There is nothing at `path`.
    pub fn at(path: &Path, name: &str) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), file, kept: true })
    }

    /// The name that `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path that names it for other programs, as a container runtime would pass it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Leaves the namespace in place when this guard is dropped.
    pub const fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs `work` on a thread inside the namespace and returns what it returned.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_in(&self.file).with_context(|| format!("entering namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Starts a thread that stays in the namespace until `work` ends.
    ///
    /// # Errors
    /// The namespace's file cannot be duplicated.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let file = self.file.try_clone().context("duplicating a namespace's file")?;
        Ok(thread::spawn(move || {
            move_in(&file)?;
            work()
        }))
    }

    /// Starts a program inside the namespace.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Child> {
        self.enter(move || {
            let program = command.get_program().to_string_lossy().into_owned();
            command.spawn().with_context(|| format!("starting {program}"))
        })?
    }

    /// Runs a program inside the namespace to its end, whatever the end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn finish(&self, command: Command, input: &str) -> Result<Finished> {
        self.enter(|| command::finish(command, input))?
    }

    /// Runs a program inside the namespace that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn succeed(&self, command: Command, input: &str) -> Result<String> {
        self.enter(|| command::succeed(command, input))?
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// [`Self::succeed`] for one line of words without quotes.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.succeed(command::line(line), "")
    }

    /// `ip` with one line of arguments.
    ///
    /// # Errors
    /// It fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        self.run(&format!("ip {line}"))
    }

    /// `ip` with a batch of lines: one process for many objects.
    ///
    /// # Errors
    /// A line fails.
    pub fn ip_batch(&self, lines: &str) -> Result<String> {
        self.succeed(command::line("ip -batch -"), lines)
    }

    /// `nft` with a whole file.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn nft(&self, rules: &str) -> Result<String> {
        self.succeed(command::line("nft -f -"), rules)
    }

    /// Writes a sysctl, named with dots as `net.ipv4.ip_forward`. Interface names with dots are not supported.
    ///
    /// # Errors
    /// It does not exist or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| std::fs::write(&file, value))?.with_context(|| format!("writing {value} to {file}"))
    }

    /// Reads a sysctl.
    ///
    /// # Errors
    /// It does not exist.
    pub fn read_sysctl(&self, name: &str) -> Result<String> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let value =
            self.enter(|| std::fs::read_to_string(&file))?.with_context(|| format!("reading {file}"))?;
        Ok(value.trim().to_owned())
    }

    /// Whether a link of this name is there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn has_link(&self, link: &str) -> Result<bool> {
        Ok(self.finish(command::line(&format!("ip link show dev {link}")), "")?.success())
    }

    /// The MAC address of a link.
    ///
    /// # Errors
    /// There is no such link.
    pub fn mac(&self, link: &str) -> Result<[u8; 6]> {
        let shown = self.ip(&format!("-o link show dev {link}"))?;
        let text = shown.split_whitespace().skip_while(|word| !word.starts_with("link/")).nth(1);
        parse_mac(text.with_context(|| format!("no MAC address in {shown}"))?)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.kept {
            let _ = delete(&self.name);
        }
    }
}

/// The names of all namespaces that start with `prefix`.
///
/// # Errors
/// The folder of names cannot be read.
pub fn names(prefix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(NAMES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {NAMES}")),
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Deletes a namespace by name.
///
/// # Errors
/// There is none of that name.
pub fn delete(name: &str) -> Result<()> {
    command::succeed(command::line(&format!("ip netns delete {name}")), "").map(drop)
}

/// Parses a MAC address.
///
/// # Errors
/// The text is none.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<_>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{text:?} is no MAC address"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(NAMES).join(name)
}

/// Moves the calling thread.
fn move_in(file: &File) -> Result<()> {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("setns")
}
