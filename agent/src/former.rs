//! What Weave Net, which this program succeeds, leaves on a node: found, shown, and removed on request.
//!
//! None of it is in the way of pods that are drained, but some is in ours: the tunnel `vxlan-6784` holds our UDP port,
//! the rules of its network policies drop what goes to the bridge, and ipsets and chains mean nothing any more. It is
//! somebody else's all the same, so only an operator's word removes it. What is of use to Weave Net alone is known by
//! names that nobody else gives, or by its exact content; whatever else there is stays.

mod kernel;
mod rules;

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cni::conflist;
use kernel::Device;
use rules::Table;

/// The database of its addresses, in the folder that its DaemonSet mounts.
const DATABASE: &str = "weave-netdata.db";
/// How its plugin's program is called; a version follows, and the names of the plugins are links to it.
const PLUGIN: &str = "weave-plugin-";
/// Its plugins.
const PLUGIN_LINKS: [&str; 2] = ["weave-net", "weave-ipam"];
/// Its networks, of the older and of the newer versions.
const NETWORKS: [&str; 2] = ["10-weave.conf", conflist::FILE];
/// What our own network always says, and its never did.
const OURS: &str = "cniVersions";
/// The programs that keep rules, each with the file that shows whether there are any, where asking would change that.
const IPTABLES: [(&str, Option<&str>); 2] =
    [("iptables-nft", None), ("iptables-legacy", Some("/proc/thread-self/net/ip_tables_names"))];
/// A set that is in another goes after it.
const ROUNDS_OF_SETS: usize = 3;

/// Where its files may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The agent's state, and its.
    pub data_dir: PathBuf,
    /// The plugins.
    pub bin_dir: PathBuf,
    /// The networks.
    pub conf_dir: PathBuf,
}

/// One thing that it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover(What);

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Device(Device),
    Rules { program: &'static str, table: Table },
    Set(String),
    File(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            What::Device(Device { name, is_datapath: true, .. }) => write!(f, "datapath {name}"),
            What::Device(Device { name, .. }) => write!(f, "device {name}"),
            What::Rules { program, table } => write!(f, "{program}, {table}"),
            What::Set(name) => write!(f, "ipset {name}"),
            What::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// Everything that it left, in the order in which it is to be removed.
///
/// # Errors
/// The kernel or a program could not be asked; the answer would not be whole.
pub fn find(places: &Places) -> io::Result<Vec<Leftover>> {
    let mut found: Vec<What> = kernel::devices()?.into_iter().map(What::Device).collect();
    for (program, tables) in IPTABLES {
        let saved = saved_rules(program, tables)?;
        found.extend(rules::find(&saved).into_iter().map(|table| What::Rules { program, table }));
    }
    found.extend(kernel::sets()?.into_iter().map(What::Set));
    found.extend(files(places).into_iter().map(What::File));
    Ok(found.into_iter().map(Leftover).collect())
}

/// Removes what was found; goes on after failures, and says what became of each.
#[must_use]
pub fn remove(found: Vec<Leftover>) -> Vec<(Leftover, io::Result<()>)> {
    let (sets, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| matches!(it.0, What::Set(_)));
    let (files, kernel): (Vec<_>, Vec<_>) = others.into_iter().partition(|it| matches!(it.0, What::File(_)));
    let one_by_one = |these: Vec<Leftover>| {
        these.into_iter().map(|it| {
            let outcome = it.remove();
            (it, outcome)
        })
    };
    let mut done: Vec<_> = one_by_one(kernel).collect();
    let mut held = sets;
    for round in 1..=ROUNDS_OF_SETS {
        let (gone, left): (Vec<_>, Vec<_>) = one_by_one(held)
            .collect::<Vec<_>>()
            .into_iter()
            .partition(|(_, outcome)| outcome.is_ok() || round == ROUNDS_OF_SETS);
        done.extend(gone);
        held = left.into_iter().map(|(set, _)| set).collect();
    }
    done.extend(one_by_one(files));
    done
}

impl Leftover {
    fn remove(&self) -> io::Result<()> {
        match &self.0 {
            What::Device(device) => kernel::remove_device(device),
            What::Rules { program, table } => restore(program, &table.removal()),
            What::Set(name) => kernel::remove_set(name),
            What::File(path) => std::fs::remove_file(path),
        }
    }
}

/// What `iptables-save` prints; nothing where there is no such program, which can have left no rules then.
fn saved_rules(program: &str, tables: Option<&str>) -> io::Result<String> {
    let is_used = |file: &str| std::fs::read_to_string(file).is_ok_and(|tables| !tables.trim().is_empty());
    if !tables.is_none_or(is_used) {
        return Ok(String::new());
    }
    let output = match Command::new(format!("{program}-save")).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    if !output.status.success() {
        return Err(told(program, &output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn restore(program: &str, script: &str) -> io::Result<()> {
    let mut child = Command::new(format!("{program}-restore"))
        .args(["--noflush", "-w", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() { Ok(()) } else { Err(told(program, &output.stderr)) }
}

fn told(program: &str, said: &[u8]) -> io::Error {
    io::Error::other(format!("{program}: {}", String::from_utf8_lossy(said).trim_end()))
}

fn files(places: &Places) -> Vec<PathBuf> {
    let networks = NETWORKS.map(|name| places.conf_dir.join(name)).into_iter().filter(|it| is_network(it));
    let links = PLUGIN_LINKS.map(|name| places.bin_dir.join(name)).into_iter().filter(|it| is_link(it));
    let database = Some(places.data_dir.join(DATABASE)).filter(|it| it.is_file());
    networks.chain(links).chain(programs(&places.bin_dir)).chain(database).collect()
}

/// The plugin's programs in a folder of plugins.
#[must_use]
pub fn programs(bin_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bin_dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PLUGIN))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn is_link(path: &Path) -> bool {
    let name =
        std::fs::read_link(path).ok().and_then(|to| Some(to.file_name()?.to_string_lossy().into_owned()));
    name.is_some_and(|name| name.starts_with(PLUGIN))
}

fn is_network(path: &Path) -> bool {
    let found = std::fs::read(path).ok().and_then(|found| serde_json::from_slice::<Value>(&found).ok());
    let Some(found) = found.filter(|found| found.get(OURS).is_none()) else { return false };
    let uses = |plugin: &Value| plugin["type"] == PLUGIN_LINKS[0];
    uses(&found) || found["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(uses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_files_are_told_from_ours_and_from_those_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let places = Places { data_dir: place("data"), bin_dir: place("bin"), conf_dir: place("conf") };
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        write(places.data_dir.join("weave.redb"), "");
        write(places.bin_dir.join("weave-net"), "ours");
        write(places.bin_dir.join("portmap"), "");
        let network = |ours: &str| format!(r#"{{{ours}"plugins":[{{"type":"weave-net"}}]}}"#);
        write(places.conf_dir.join("10-weave.conflist"), &network(r#""cniVersions":["1.0.0"],"#));
        write(places.conf_dir.join("20-other.conflist"), "{}");
        assert_eq!(files(&places), Vec::<PathBuf>::new());

        write(places.data_dir.join("weave-netdata.db"), "");
        write(places.bin_dir.join("weave-plugin-2.8.1"), "");
        std::os::unix::fs::symlink("weave-plugin-2.8.1", places.bin_dir.join("weave-ipam")).unwrap();
        write(places.conf_dir.join("10-weave.conflist"), &network(""));
        let found: Vec<_> = files(&places)
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(found, ["10-weave.conflist", "weave-ipam", "weave-plugin-2.8.1", "weave-netdata.db"]);
    }
}
