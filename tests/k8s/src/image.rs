//! Container images, made from what is on the machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use weave_netns::Lab;
use weave_netns::command;

use crate::programs::program;

/// The image of the agent, as the manifest names it.
pub const WEAVE: &str = "weave-net:0.1.0";
/// The image of the pods of tests: agnhost (Kubernetes' own server and client for tests), busybox, curl and dnsmasq. By itself
/// it serves HTTP on port 8080.
pub const TOOLS: &str = "weave.test/tools:1";

/// Where the recipe of weave's image is.
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/image");

/// Archives of all images that a node needs.
#[derive(Debug, Clone)]
pub struct Images {
    archives: Vec<PathBuf>,
}

impl Images {
    /// Makes them from the binaries under test and the machine's programs.
    ///
    /// # Errors
    /// A binary or a program is missing.
    pub fn make(lab: &Lab) -> Result<Self> {
        let archives = vec![weave(lab, WEAVE)?, tools(lab)?, weave_netns::containerd::image(lab)?];
        Ok(Self { archives })
    }

    /// The archives.
    pub fn archives(&self) -> impl Iterator<Item = &Path> {
        self.archives.iter().map(PathBuf::as_path)
    }
}

/// The image of the agent under a name.
///
/// # Errors
/// A binary or a program is missing.
pub fn weave(lab: &Lab, name: &str) -> Result<PathBuf> {
    let archive = lab.scratch().join(format!("{}.tar", name.replace([':', '/'], "-")));
    let mut recipe =
        command::words(Path::new(RECIPES).join("build.sh"), [&lab.settings().binaries, &archive]);
    recipe.arg(name);
    command::succeed(recipe, "").context("making weave's image")?;
    Ok(archive)
}

fn tools(lab: &Lab) -> Result<PathBuf> {
    let root = lab.scratch().join("tools");
    let binaries = root.join("bin");
    fs::create_dir_all(&binaries)?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::copy(program("agnhost")?, binaries.join("agnhost")).context("copying agnhost")?;
    fs::copy("/bin/busybox", binaries.join("busybox")).context("is busybox missing? run `make tools`")?;
    for applet in ["sh", "sleep", "ping", "ip", "cat", "hostname", "nc"] {
        symlink("busybox", binaries.join(applet))?;
    }
    // A static busybox has a wget, but it crashes when it looks a service up in libraries that are not there.
    with_libraries("/usr/bin/curl", &root)?;
    with_libraries("/usr/sbin/dnsmasq", &root)?;
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let archive = lab.scratch().join("tools.tar");
    let mut recipe = command::words(Path::new(RECIPES).join("archive.sh"), [&root, &archive]);
    recipe.args([TOOLS, "/bin/agnhost", "netexec", "--http-port=8080", "--udp-port=8081"]);
    command::succeed(recipe, "").context("making the tests' image")?;
    fs::remove_dir_all(root)?;
    Ok(archive)
}

/// Copies a program and the libraries that it is linked with to where they are on the machine.
fn with_libraries(program: &str, root: &Path) -> Result<()> {
    let shown = command::succeed(command::words("ldd", [program]), "")?;
    let libraries = shown.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let place = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file has a folder")?)?;
        fs::copy(file, place).with_context(|| format!("copying {file}"))?;
    }
    Ok(())
}
