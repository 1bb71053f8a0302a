//! The CNI plugin's files on this node: `weave setup-cni` makes them, `weave reset` removes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::{CniDirs, SetupCniArgs};
use super::{CommandError, Exit, Terminal, Trace};
use crate::cni::Paths;
use crate::cni::conflist::{self, Conflist};
use crate::former;

/// The plugin's program.
const PLUGIN: &str = "weave-net";
/// The same program by its other name: an IPAM plugin for other networks.
const IPAM_PLUGIN: &str = "weave-ipam";
/// What Weave Net once wrote. It sorts before the network's file and would hide it.
const FORMER_NETWORK: &str = "10-weave.conf";

pub(super) fn install(
    args: &SetupCniArgs,
    run_dir: &Path,
    terminal: &mut Terminal<'_>,
) -> Result<(), CommandError> {
    let source = args.plugin.clone().map_or_else(beside_this_program, Ok)?;
    let CniDirs { bin_dir, conf_dir } = &args.dirs;
    fs::File::open(&source).map_err(told("read the CNI plugin", &source))?;
    conflist::install_shim(&source, bin_dir).map_err(told("install the CNI plugin in", bin_dir))?;
    for name in [PLUGIN, IPAM_PLUGIN] {
        writeln!(terminal.out, "installed {}", bin_dir.join(name).display())?;
    }
    let (chained, missing) = conflist::look_around(bin_dir);
    for lost in missing {
        writeln!(terminal.err, "note: {lost}")?;
    }
    if !args.hairpin_mode {
        writeln!(
            terminal.err,
            "note: hairpin mode stays on: it cannot cause a loop here, and Services need it"
        )?;
    }
    for former in former::programs(bin_dir) {
        fs::remove_file(&former).map_err(told("remove Weave Net's plugin", &former))?;
        writeln!(
            terminal.out,
            "removed {}: {PLUGIN} and {IPAM_PLUGIN} no longer lead there",
            former.display()
        )?;
    }
    if args.no_network {
        return remove_former(conf_dir, terminal);
    }
    let absolute = |dir: &Path| std::path::absolute(dir).map_err(told("find the directory", dir));
    let paths = Paths { run_dir: absolute(run_dir)?, data_dir: absolute(&args.data_dir)? };
    let network = Conflist { name: "weave".to_owned(), hairpin: true, mtu: None, paths, chained };
    install_network(&network, conf_dir, terminal)
}

/// The network last: the runtime uses the plugin as soon as it sees the network.
fn install_network(
    network: &Conflist,
    conf_dir: &Path,
    terminal: &mut Terminal<'_>,
) -> Result<(), CommandError> {
    remove_former(conf_dir, terminal)?;
    let path = conf_dir.join(conflist::FILE);
    match fs::read(&path) {
        Ok(found) if serde_json::from_slice::<Value>(&found).is_ok_and(|found| found == network.render()) => {
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
            network.install(conf_dir).map_err(told("write the network", &path))?;
            writeln!(terminal.out, "installed {}", path.display())?;
        }
        Err(error) => return Err(told("read the network", &path)(error)),
    }
    Ok(())
}

fn remove_former(conf_dir: &Path, terminal: &mut Terminal<'_>) -> Result<(), CommandError> {
    let former = conf_dir.join(FORMER_NETWORK);
    if is_ours(&former) {
        fs::remove_file(&former).map_err(told("remove Weave Net's network", &former))?;
        writeln!(terminal.out, "removed {}, which would hide {}", former.display(), conflist::FILE)?;
    }
    Ok(())
}

pub(super) fn remove(dirs: &CniDirs) -> Vec<Trace> {
    let network = dirs.conf_dir.join(conflist::FILE);
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

fn told(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CommandError {
    move |error| {
        let exit =
            if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Failed };
        CommandError::Told(exit, format!("cannot {action} {}: {error}", path.display()))
    }
}
