//! Control groups that container runtimes make: in every hierarchy of version 1, or in the one of version 2.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// The groups at the top of any hierarchy whose names start with `prefix`.
#[must_use]
pub fn starting_with(prefix: &str) -> Vec<PathBuf> {
    let (mut found, others) = partition(Path::new(ROOT), prefix);
    // With version 1 the hierarchies are folders of their own.
    for hierarchy in others {
        found.extend(partition(&hierarchy, prefix).0);
    }
    found
}

/// Removes a group and all groups in it, which no process may be in.
///
/// # Errors
/// A process is in one of them.
pub fn remove(group: &Path) -> io::Result<()> {
    for inner in folders(group) {
        remove(&inner)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn partition(folder: &Path, prefix: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let starts = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    };
    folders(folder).into_iter().partition(starts)
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let is_folder = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(is_folder).map(|entry| entry.path()).collect()
}
