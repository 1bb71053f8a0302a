//! House rules as tests: who may know whom, how long things may be, what nobody may do.
//!
//! A rule that a machine checks needs no reviewer. What is checked here is what clippy cannot see: the import
//! table between rooms, the length of files, and habits such as sleeping in a test.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A source file: its path relative to the root, and its text.
pub struct Source {
    /// Relative to the root, with forward slashes.
    pub path: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Whether the file holds tests only.
    #[must_use]
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }

    /// The lines before the first inline test module.
    #[must_use]
    pub fn production_lines(&self) -> usize {
        self.text.lines().take_while(|line| !line.starts_with("mod tests {")).count()
    }
}

/// Every Rust file below `folder` (relative to the root), in the order of paths.
///
/// # Panics
/// A folder or file cannot be read.
#[must_use]
pub fn sources(folder: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut open = vec![root.join(folder)];
    while let Some(dir) = open.pop() {
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "target" && name != "fuzz" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
                let path = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
