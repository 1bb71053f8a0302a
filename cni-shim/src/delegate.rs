//! Another plugin as the source of addresses: `ipam.type` in the configuration.
//!
//! It is found in CNI_PATH and started with our own environment and standard input, as the specification says;
//! what it writes to standard error goes where ours goes.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;
use weave_proto::local::cni::{ErrorCode, Given, Refusal};

use crate::env::Environment;
use crate::result::{CniResult, Dns, ResultRoute};

/// A delegated IPAM plugin.
pub(crate) struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    input: &'a [u8],
}

/// What it gave.
pub(crate) struct Lease {
    pub(crate) given: Given,
    pub(crate) routes: Vec<ResultRoute>,
    pub(crate) dns: Dns,
}

#[derive(Deserialize)]
struct WrittenError {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Delegate<'a> {
    /// Finds the plugin.
    ///
    /// # Errors
    /// Code 4 without CNI_PATH, 7 if the name is a path, 5 if there is no such plugin.
    pub(crate) fn find(name: &'a str, environment: &Environment, input: &'a [u8]) -> Result<Self, Refusal> {
        if name.contains('/') {
            return Err(Refusal::new(
                ErrorCode::InvalidConfig,
                format!("ipam.type: {name:?} is no plugin's name"),
            ));
        }
        if environment.path.is_empty() {
            let msg =
                format!("required environment variable missing: CNI_PATH, to find the IPAM plugin {name:?}");
            return Err(Refusal::new(ErrorCode::InvalidEnvironment, msg));
        }
        let program = environment.path.iter().map(|dir| dir.join(name)).find(|program| {
            program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        });
        let program = program.ok_or_else(|| {
            let dirs: Vec<_> = environment.path.iter().map(|dir| dir.display().to_string()).collect();
            Refusal::new(
                ErrorCode::Io,
                format!("there is no IPAM plugin {name:?} in CNI_PATH {}", dirs.join(":")),
            )
        })?;
        Ok(Self { name, program, input })
    }

    /// ADD. This network attaches a pod with one address; a plugin that gives several is asked to take them back.
    pub(crate) fn add(&self) -> Result<Lease, Refusal> {
        let output = self.run("ADD")?;
        let result = serde_json::from_slice::<Value>(&output)
            .map_err(|error| self.illegible(&error))
            .and_then(|value| CniResult::read(&value));
        let lease = result.and_then(|result| self.lease(result));
        lease.map_err(|refusal| self.give_back(refusal))
    }

    /// DEL, CHECK, GC or STATUS.
    pub(crate) fn forward(&self, verb: &str) -> Result<(), Refusal> {
        self.run(verb).map(drop)
    }

    /// DEL after a failure: what the plugin gave must not be lost. The failure stays the error, with the
    /// trouble of taking it back beside it, if there was any.
    pub(crate) fn give_back(&self, failure: Refusal) -> Refusal {
        match self.forward("DEL") {
            Ok(()) => failure,
            Err(second) => {
                let details = format!("{} its address was not taken back: {second}", failure.details);
                failure.with_details(details.trim_start())
            }
        }
    }

    fn lease(&self, result: CniResult) -> Result<Lease, Refusal> {
        let [ip] = result.ips.as_slice() else {
            let count = result.ips.len();
            let msg = format!("the IPAM plugin {} gave {count} addresses; a pod here has one", self.name);
            return Err(Refusal::new(ErrorCode::InvalidConfig, msg));
        };
        let parsed = ip.address.split_once('/');
        let parsed = parsed.and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
        let Some((address, prefix)) = parsed else {
            return Err(self.illegible(&format!("{:?} is no address with a prefix length", ip.address)));
        };
        let given = Given { address, prefix, gateway: ip.gateway };
        Ok(Lease { given, routes: result.routes, dns: result.dns })
    }

    fn run(&self, verb: &str) -> Result<Vec<u8>, Refusal> {
        let failed = |error: std::io::Error| {
            Refusal::new(
                ErrorCode::Io,
                format!("cannot run the IPAM plugin {}: {error}", self.program.display()),
            )
        };
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its input to the end may still do its work.
            let _unread = stdin.write_all(self.input);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(match serde_json::from_slice::<WrittenError>(&output.stdout) {
            Ok(error) => Refusal {
                code: ErrorCode::from(error.code),
                msg: format!("IPAM plugin {}: {}", self.name, error.msg),
                details: error.details,
            },
            Err(_) => {
                let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                let msg = format!("the IPAM plugin {} failed on {verb}: {}", self.name, output.status);
                Refusal::new(ErrorCode::Internal, msg).with_details(text)
            }
        })
    }

    fn illegible(&self, why: &dyn std::fmt::Display) -> Refusal {
        Refusal::new(
            ErrorCode::Decode,
            format!("cannot read the answer of the IPAM plugin {}: {why}", self.name),
        )
    }
}
