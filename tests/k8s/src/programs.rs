//! Where the programs of Kubernetes are, and how they come there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};

/// Fills the folder of programs; quick when they are there.
const BUILD: &str = "build-kubernetes.sh";

/// The path of one of Kubernetes' programs. The first call of a run builds what is missing.
///
/// # Errors
/// They are not there and cannot be built; the message says what is lacking.
pub fn program(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    Ok(folder.as_ref().map_err(|error| anyhow!(error.clone()))?.join(name))
}

/// The folder outside of the clone that outlives it (`WEAVE_K8S_CACHE`, else in the user's folder of caches).
///
/// # Errors
/// The environment names no home.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = text("WEAVE_K8S_CACHE") {
        return Ok(PathBuf::from(folder));
    }
    let caches = text("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| text("HOME").map(in_home));
    Ok(caches.context("neither XDG_CACHE_HOME nor HOME is set: set WEAVE_K8S_CACHE")?.join("weave-k8s"))
}

fn prepare() -> Result<PathBuf> {
    let cache = cache()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(BUILD);
    let built = Command::new(&script)
        .arg(&cache)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", script.display()))?;
    ensure!(built.success(), "{} failed; what it lacks is above", script.display());
    Ok(cache.join("bin"))
}

fn in_home(home: String) -> PathBuf {
    Path::new(&home).join(".cache")
}

/// The value of a variable, unless unset or empty.
#[expect(clippy::disallowed_methods, reason = "the one place where this package reads the environment")]
fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
