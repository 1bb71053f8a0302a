//! What may not be left: namespaces, links, processes and files of a lab; and the removal of what a killed run
//! could not clean up itself.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::cgroup;
use crate::command;
use crate::ns;

/// Fails while anything of the lab `tag` is left.
///
/// # Errors
/// Something is left; the message names it.
pub fn check(tag: &str, scratch: &Path, pids: &[u32]) -> Result<()> {
    let namespaces = ns::names(&format!("{tag}-"))?;
    ensure!(namespaces.is_empty(), "namespaces are left: {namespaces:?}");
    let links = command::succeed(command::line("ip -o link show"), "")?;
    ensure!(!links.contains(tag), "links are left in the machine's own namespace:\n{links}");
    let alive: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
    ensure!(alive.is_empty(), "processes are left: {alive:?}");
    let groups = cgroup::starting_with(&format!("{tag}-"));
    ensure!(groups.is_empty(), "control groups are left: {groups:?}");
    ensure!(!scratch.exists(), "files are left: {}", scratch.display());
    Ok(())
}

/// Removes the namespaces, the processes inside them and the files of runs whose process is gone.
///
/// # Errors
/// The names cannot be listed.
pub fn sweep(prefix: &str, scratch: &Path) -> Result<()> {
    for name in ns::names(prefix)?.into_iter().filter(|name| is_orphan(prefix, name)) {
        remove(&name)?;
    }
    for group in cgroup::starting_with(prefix) {
        if group.file_name().and_then(OsStr::to_str).is_some_and(|name| is_orphan(prefix, name)) {
            let _ = cgroup::remove(&group);
        }
    }
    for entry in std::fs::read_dir(scratch).with_context(|| format!("reading {}", scratch.display()))? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| is_orphan(prefix, name)) {
            let _ = std::fs::remove_dir_all(scratch.join(name));
        }
    }
    Ok(())
}

/// Ends the processes that live in a namespace of a lab, by their ids, and deletes it.
///
/// # Errors
/// `ip` cannot be run.
pub fn remove(name: &str) -> Result<()> {
    let inhabitants = command::finish(command::line(&format!("ip netns pids {name}")), "")?;
    for pid in inhabitants.stdout.lines().filter_map(|line| line.trim().parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = ns::delete(name);
    Ok(())
}

/// Whether a name was made by a process of this package (`wv<pid in hex>-…`) that runs no more.
fn is_orphan(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok())
        .is_some_and(|pid| !is_alive(pid))
}

/// Whether a process runs (a zombie does not).
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}
