//! What the environment says, read here and nowhere else.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The settings of one run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder that holds the binaries under test (`WEAVE_BIN_DIR`; else the folder that cargo built this
    /// program into).
    pub binaries: PathBuf,
    /// Where the reference CNI plugins are (`CNI_PLUGINS`; else where Debian puts them).
    pub plugins: PathBuf,
    /// Where nodes keep their files (`WEAVE_LAB_DIR`; else the system's folder for temporary files).
    pub scratch: PathBuf,
    /// Whether this is a run that nobody watches (`CI=true`): what cannot be tested then fails.
    pub unattended: bool,
    /// Whether to leave the demonstration up (`KEEP=1`).
    pub keep: bool,
    /// The seed of random choices (`WEAVE_TEST_SEED`).
    pub seed: Option<u64>,
    /// The agent's log level (`WEAVE_LOG_LEVEL`).
    pub log_level: Option<String>,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// This program's own path is not known, or a value does not parse.
    pub fn read() -> Result<Self> {
        let built = std::env::current_exe().context("finding the folder of this program")?;
        Ok(Self {
            binaries: text("WEAVE_BIN_DIR").map_or_else(|| beside(&built), PathBuf::from),
            plugins: text("CNI_PLUGINS").map_or_else(|| PathBuf::from("/usr/lib/cni"), PathBuf::from),
            scratch: text("WEAVE_LAB_DIR").map_or_else(std::env::temp_dir, PathBuf::from),
            unattended: text("CI").is_some_and(|value| value == "true" || value == "1"),
            keep: text("KEEP").is_some_and(|value| value == "1"),
            seed: text("WEAVE_TEST_SEED")
                .map(|value| value.parse().with_context(|| format!("WEAVE_TEST_SEED={value} is no number")))
                .transpose()?,
            log_level: text("WEAVE_LOG_LEVEL"),
        })
    }

    /// The path of a binary under test.
    ///
    /// # Errors
    /// It has not been built.
    pub fn binary(&self, name: &str) -> Result<PathBuf> {
        let path = self.binaries.join(name);
        ensure!(
            path.is_file(),
            "{} is missing: run `cargo build -p weave-agent -p weave-cni` first, or set WEAVE_BIN_DIR",
            path.display()
        );
        Ok(path)
    }
}

/// The value of a variable, unless unset or empty.
#[expect(clippy::disallowed_methods, reason = "the one place where this package reads the environment")]
fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The folder of cargo's binaries: tests are one level deeper, in `deps`.
fn beside(program: &Path) -> PathBuf {
    let folder = program.parent().unwrap_or_else(|| Path::new("."));
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_path_buf()
}
