//! What the runtime finds on the host: the shim's binaries, then the network's configuration.
//!
//! The order matters, because a runtime acts on the configuration the moment it appears: CRI-O starts every plugin
//! that it names, and the kubelet sends pods. So the binaries come first, and the configuration last, once pods can
//! be served. It stays when the agent stops, since without it the runtime cannot even remove pods.
//!
//! The manner matters, too. A binary that is running cannot be overwritten, but it can be replaced. And containerd
//! looks at the folder when a file in it is written or renamed within it, but not when one is moved in from
//! elsewhere: so the configuration is written beside its place, under an extension that no runtime reads, and
//! renamed there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weave_proto::local::cni::{DATA_DIR, RUN_DIR};

use super::Paths;

/// The configuration's file name. Runtimes take the first in the order of names.
pub const FILE: &str = "10-weave.conflist";

/// The version that every runtime and every packaged plugin of the last years speaks.
const VERSION: &str = "1.0.0";

/// The version with GC and STATUS, which runtimes ask every plugin of a chain.
const NEWEST: &str = "1.1.0";

/// How long a plugin may take to say which versions it speaks. It only prints a line.
const VERSION_PATIENCE: Duration = Duration::from_secs(2);

/// The shim's names.
const SHIM: &str = "weave-net";
const IPAM_SHIM: &str = "weave-ipam";

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// The network's name.
    pub name: String,
    /// Whether ports carry the hairpin flag (HAIRPIN_MODE).
    pub hairpin: bool,
    /// The MTU that pods are to have, where one is asked for.
    pub mtu: Option<u32>,
    /// Where the shim finds the agent.
    pub paths: Paths,
    /// The standard plugins that stand behind ours, of those that are installed.
    pub chained: Vec<Chained>,
}

/// A standard plugin behind ours, as it is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chained {
    /// Which.
    pub plugin: Standard,
    /// Whether it speaks version 1.1.0.
    pub is_newest: bool,
}

/// A plugin that distributions bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// hostPort.
    Portmap,
    /// The bandwidth annotations.
    Bandwidth,
}

impl Standard {
    const ALL: [Self; 2] = [Self::Portmap, Self::Bandwidth];

    const fn name(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
            Self::Bandwidth => "bandwidth",
        }
    }

    fn document(self) -> Value {
        match self {
            Self::Portmap => {
                json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true })
            }
            Self::Bandwidth => json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        }
    }

    /// What pods go without when it is not there.
    const fn loss(self) -> &'static str {
        match self {
            Self::Portmap => "hostPort of pods has no effect",
            Self::Bandwidth => "the bandwidth annotations of pods have no effect",
        }
    }
}

/// What is missing in the folder of plugins, and what that means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the CNI plugin {plugin} is not in {dir}: {loss}{}", self.hint())]
pub struct Missing {
    plugin: &'static str,
    dir: PathBuf,
    loss: &'static str,
    is_in_debians: bool,
}

/// Where Debian's packages put plugins, and its containerd looks for them.
const DEBIANS: &str = "/usr/lib/cni";

impl Missing {
    fn hint(&self) -> String {
        if !self.is_in_debians {
            return "; install it there (Debian's package containernetworking-plugins has it)".to_owned();
        }
        format!(
            " (it is in {DEBIANS}: if the container runtime looks there, install with --bin-dir {DEBIANS})"
        )
    }
}

/// The standard plugins that can be chained, and what is missing. The chain names only what is there, because a
/// runtime refuses a configuration that names a plugin which it cannot find.
#[must_use]
pub fn look_around(bin_dir: &Path) -> (Vec<Chained>, Vec<Missing>) {
    let is_there = |name: &str| bin_dir.join(name).is_file();
    let missing = |plugin, loss| {
        let is_in_debians = Path::new(DEBIANS).join(plugin).is_file();
        Missing { plugin, dir: bin_dir.to_owned(), loss, is_in_debians }
    };
    let (there, not_there): (Vec<_>, Vec<_>) =
        Standard::ALL.into_iter().partition(|one| is_there(one.name()));
    let there = there
        .into_iter()
        .map(|plugin| Chained { plugin, is_newest: speaks(&bin_dir.join(plugin.name()), NEWEST) })
        .collect();
    let mut lost: Vec<_> = not_there.into_iter().map(|one| missing(one.name(), one.loss())).collect();
    if !is_there("loopback") {
        lost.push(missing("loopback", "containerd before 2.0 cannot start any pod"));
    }
    (there, lost)
}

/// Whether a plugin says that it speaks this version.
fn speaks(plugin: &Path, version: &str) -> bool {
    versions(plugin).is_ok_and(|versions| versions.iter().any(|spoken| spoken == version))
}

/// What a plugin answers to VERSION. A plugin that does not answer in time is ended.
fn versions(plugin: &Path) -> io::Result<Vec<String>> {
    let mut asked = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = asked.stdin.take() {
        // A plugin that answers without reading has closed this end.
        let _ = input.write_all(json!({ "cniVersion": VERSION }).to_string().as_bytes());
    }
    let deadline = Instant::now() + VERSION_PATIENCE;
    while asked.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            asked.kill()?;
            asked.wait()?;
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer: Value = serde_json::from_slice(&asked.wait_with_output()?.stdout)?;
    let versions = answer["supportedVersions"].as_array().into_iter().flatten();
    Ok(versions.filter_map(Value::as_str).map(str::to_owned).collect())
}

impl Conflist {
    /// The document. Nothing that has its usual value is written down.
    #[must_use]
    pub fn render(&self) -> Value {
        let mut ours = json!({ "type": SHIM, "hairpinMode": self.hairpin });
        if let Some(mtu) = self.mtu {
            ours["mtu"] = json!(mtu);
        }
        if self.paths.run_dir != Path::new(RUN_DIR) {
            ours["runDir"] = json!(self.paths.run_dir);
        }
        if self.paths.data_dir != Path::new(DATA_DIR) {
            ours["dataDir"] = json!(self.paths.data_dir);
        }
        let plugins: Vec<_> =
            [ours].into_iter().chain(self.chained.iter().map(|one| one.plugin.document())).collect();
        // A runtime that knows cniVersions takes the newest of them, and fails if one plugin of the chain does not speak
        // it; the plugins of many distributions stop before 1.1.0.
        let mut versions = vec!["0.3.1", "0.4.0", VERSION];
        if self.chained.iter().all(|one| one.is_newest) {
            versions.push(NEWEST);
        }
        json!({ "cniVersion": VERSION, "cniVersions": versions, "name": self.name, "plugins": plugins })
    }

    /// Writes the configuration into `conf_dir`, unless the very same is there. Call it last, when ADD can be
    /// served.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn install(&self, conf_dir: &Path) -> io::Result<()> {
        let document = format!("{:#}\n", self.render());
        let place = conf_dir.join(FILE);
        if std::fs::read_to_string(&place).is_ok_and(|there| there == document) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(conf_dir)?;
        let new = Beside::write(&place, document.as_bytes(), 0o644)?;
        new.put_in_place()
    }
}

/// Installs the shim from the file `shim` into `bin_dir` under both its names. One that is there and the same
/// stays.
///
/// # Errors
/// It cannot be read, or the folder cannot be written to.
pub fn install_shim(shim: &Path, bin_dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(bin_dir)?;
    let binary = std::fs::read(shim)?;
    let place = bin_dir.join(SHIM);
    let same = std::fs::read(&place).is_ok_and(|there| there == binary);
    if !same || std::fs::metadata(&place)?.permissions().mode() & 0o111 != 0o111 {
        Beside::write(&place, &binary, 0o755)?.put_in_place()?;
    }
    let ipam = bin_dir.join(IPAM_SHIM);
    if std::fs::read_link(&ipam).is_ok_and(|target| target == Path::new(SHIM)) {
        return Ok(());
    }
    // A link of the same folder: an upgrade of one name is an upgrade of both.
    let link = bin_dir.join(format!(".{IPAM_SHIM}.new"));
    remove_if_there(&link)?;
    std::os::unix::fs::symlink(SHIM, &link)?;
    std::fs::rename(&link, &ipam)
}

/// A file beside its place, whole and durable; gone again if it is not put there.
struct Beside {
    path: PathBuf,
    place: PathBuf,
}

impl Beside {
    fn write(place: &Path, content: &[u8], mode: u32) -> io::Result<Self> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let path = place.with_file_name(format!(".{name}.new"));
        remove_if_there(&path)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let beside = Self { path, place: place.to_owned() };
        file.write_all(content)?;
        // Whatever the umask says.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(beside)
    }

    fn put_in_place(self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.place)?;
        self.place.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _was_put_in_place = std::fs::remove_file(&self.path);
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
