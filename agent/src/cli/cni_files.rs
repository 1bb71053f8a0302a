//! The CNI plugin's files on this node: `weave setup-cni` makes them, `weave reset` removes them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{CniDirs, SetupCniArgs};
use super::{CommandError, Exit, Terminal, Trace};

/// The plugin's program.
const PLUGIN: &str = "weave-net";
/// The same program by its other name: an IPAM plugin for other networks.
const IPAM_PLUGIN: &str = "weave-ipam";
/// The network. Its name sorts early: the runtime takes the first network that it finds.
const NETWORK: &str = "10-weave.conflist";
/// What Weave Net once wrote. It sorts before [`NETWORK`] and would hide it.
const FORMER_NETWORK: &str = "10-weave.conf";

/// The network's configuration. Runtimes that know CNI 1.1 take the list of versions and get GC and STATUS;
/// older ones take the single one. `portmap` is the standard plugin and gives pods their hostPort.
#[must_use]
pub(super) fn network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "weave",
        "plugins": [
            { "type": PLUGIN, "name": "weave" },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    })
}

pub(super) fn install(args: &SetupCniArgs, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let source = args.plugin.clone().map_or_else(beside_this_program, Ok)?;
    let CniDirs { bin_dir, conf_dir } = &args.dirs;
    for dir in [bin_dir, conf_dir] {
        fs::create_dir_all(dir).map_err(told("make the directory", dir))?;
    }
    let plugin = bin_dir.join(PLUGIN);
    let program = fs::read(&source).map_err(told("read the CNI plugin", &source))?;
    replace(&plugin, &program, 0o755).map_err(told("install the CNI plugin as", &plugin))?;
    writeln!(terminal.out, "installed {}", plugin.display())?;
    let alias = bin_dir.join(IPAM_PLUGIN);
    replace_link(&alias, Path::new(PLUGIN)).map_err(told("install the CNI plugin as", &alias))?;
    writeln!(terminal.out, "installed {}", alias.display())?;
    install_network(conf_dir, terminal)
}

/// The network last: the runtime uses the plugin as soon as it sees the network.
fn install_network(conf_dir: &Path, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let former = conf_dir.join(FORMER_NETWORK);
    if is_ours(&former) {
        fs::remove_file(&former).map_err(told("remove Weave Net's network", &former))?;
        writeln!(terminal.out, "removed {}, which would hide the network below", former.display())?;
    }
    let path = conf_dir.join(NETWORK);
    match fs::read(&path) {
        Ok(found) if serde_json::from_slice::<Value>(&found).is_ok_and(|found| found == network()) => {
            writeln!(terminal.out, "{} is there already", path.display())?;
        }
        Ok(_) => {
            let advice = "remove it and run this again for the standard one";
            writeln!(
                terminal.out,
                "{} is there already, with other content: left as it is; {advice}",
                path.display()
            )?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut text = serde_json::to_string_pretty(&network())?;
            text.push('\n');
            replace(&path, text.as_bytes(), 0o644).map_err(told("write the network", &path))?;
            writeln!(terminal.out, "installed {}", path.display())?;
        }
        Err(error) => return Err(told("read the network", &path)(error)),
    }
    Ok(())
}

pub(super) fn remove(dirs: &CniDirs) -> Vec<Trace> {
    let network = dirs.conf_dir.join(NETWORK);
    let mut traces = Vec::new();
    if is_ours(&network) || !network.exists() {
        traces.push(Trace::of_file(network.display().to_string(), fs::remove_file(&network)));
    }
    for program in [IPAM_PLUGIN, PLUGIN] {
        let path = dirs.bin_dir.join(program);
        traces.push(Trace::of_file(path.display().to_string(), fs::remove_file(&path)));
    }
    traces
}

/// Whether the file is a CNI network (list) that uses our plugin.
fn is_ours(path: &Path) -> bool {
    let Some(found) = fs::read(path).ok().and_then(|found| serde_json::from_slice::<Value>(&found).ok())
    else {
        return false;
    };
    let uses = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(PLUGIN);
    uses(&found)
        || found.get("plugins").and_then(Value::as_array).is_some_and(|plugins| plugins.iter().any(uses))
}

fn beside_this_program() -> Result<PathBuf, CommandError> {
    let program =
        std::env::current_exe().map_err(told("find the directory of", Path::new("this program")))?;
    Ok(program.with_file_name(PLUGIN))
}

/// Writes a file that is either the old one or the new one at any moment, also across a power failure.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = temporary(path);
    let written = (|| {
        let mut file = fs::File::create(&new)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_directory_of(path)
    })();
    written.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

fn replace_link(path: &Path, to: &Path) -> io::Result<()> {
    let new = temporary(path);
    let _ = fs::remove_file(&new);
    symlink(to, &new)?;
    fs::rename(&new, path).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Beside `path`, hidden, and with an ending that container runtimes take for no network.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

fn told(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CommandError {
    move |error| {
        let exit =
            if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Failed };
        CommandError::Told(exit, format!("cannot {action} {}: {error}", path.display()))
    }
}
