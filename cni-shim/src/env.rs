//! The environment, read once: which verb, for which interface of which container.
//!
//! The variables are those of the specification. Everything wrong with them is reported together, so that the
//! author of a runtime learns of all of it in one go.

use std::ffi::OsString;
use std::path::PathBuf;

use weave_proto::local::cni::{AttachmentKey, ErrorCode, Refusal};

/// The verb of CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// What the CNI_ variables say. `key` and `netns` are proof of what [`Verb`] needs: see [`Environment::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) verb: Verb,
    /// The container and interface: reserved words only for verbs that name none.
    pub(crate) key: AttachmentKey,
    /// CNI_NETNS; empty where DEL was given none, and for verbs that have none.
    pub(crate) netns: String,
    /// CNI_ARGS, in order.
    pub(crate) args: Vec<(String, String)>,
    /// CNI_PATH.
    pub(crate) path: Vec<PathBuf>,
}

/// The longest interface name: IFNAMSIZ less the closing zero.
const MAX_INTERFACE_NAME: usize = 15;

impl Environment {
    /// The process's own environment; none if there is no CNI_COMMAND at all, that is, if a person started us.
    pub(crate) fn read() -> Option<Result<Self, crate::Failure>> {
        let variables: Vec<_> = std::env::vars_os().collect();
        let command = variables.iter().find(|(name, _)| name == "CNI_COMMAND");
        command.filter(|(_, value)| !value.is_empty())?;
        Some(Self::parse(&variables).map_err(Into::into))
    }

    /// What these variables say.
    ///
    /// # Errors
    /// Code 4, with everything that is missing or wrong.
    pub(crate) fn parse(variables: &[(OsString, OsString)]) -> Result<Self, Refusal> {
        let value = |name: &str| {
            let found = variables.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let command = value("CNI_COMMAND");
        let verb = match command.as_str() {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            unknown => return Err(environment_error(format!("unknown CNI_COMMAND: {unknown:?}"))),
        };
        let missing: Vec<_> = verb.required().iter().copied().filter(|name| value(name).is_empty()).collect();
        if !missing.is_empty() {
            let variables = if missing.len() == 1 { "variable" } else { "variables" };
            let missing = missing.join(", ");
            return Err(environment_error(format!("required environment {variables} missing: {missing}"))
                .with_details(format!("CNI_COMMAND is {command}")));
        }
        let key = AttachmentKey { container: value("CNI_CONTAINERID"), interface: value("CNI_IFNAME") };
        if verb.names_an_interface() {
            check_container_id(&key.container)?;
            check_interface_name(&key.interface)?;
        }
        let path =
            std::env::split_paths(&value("CNI_PATH")).filter(|dir| !dir.as_os_str().is_empty()).collect();
        Ok(Self { verb, key, netns: value("CNI_NETNS"), args: parse_args(&value("CNI_ARGS"), verb)?, path })
    }

    /// The value of a key of CNI_ARGS; not if it is empty.
    pub(crate) fn arg(&self, key: &str) -> Option<&str> {
        let found = self.args.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// `namespace/name`, where Kubernetes told us.
    pub(crate) fn pod(&self) -> Option<String> {
        Some(format!("{}/{}", self.arg("K8S_POD_NAMESPACE")?, self.arg("K8S_POD_NAME")?))
    }
}

impl Verb {
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status | Self::Version => &[],
        }
    }

    const fn names_an_interface(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// A container id, or a network's name: a letter or digit, then letters, digits, `_`, `.` and `-`.
pub(crate) fn is_cni_name(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_container_id(id: &str) -> Result<(), Refusal> {
    if is_cni_name(id) {
        return Ok(());
    }
    Err(environment_error(format!("invalid characters in CNI_CONTAINERID: {id:?}"))
        .with_details("a letter or digit, then letters, digits, '_', '.' and '-'"))
}

fn check_interface_name(name: &str) -> Result<(), Refusal> {
    let wrong = if name.len() > MAX_INTERFACE_NAME {
        "is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "is . or .."
    } else if name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace()) {
        "has a '/', a ':' or a blank"
    } else {
        return Ok(());
    };
    Err(environment_error(format!("invalid CNI_IFNAME: {name:?} {wrong}")))
}

/// `K=V;K=V`. A DEL goes on with what could be read: nothing in here is worth keeping a pod for.
fn parse_args(text: &str, verb: Verb) -> Result<Vec<(String, String)>, Refusal> {
    let mut args = Vec::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) => args.push((key.to_owned(), value.to_owned())),
            None if verb == Verb::Del => {}
            None => return Err(environment_error(format!("invalid pair {pair:?} in CNI_ARGS: no '='"))),
        }
    }
    Ok(args)
}

fn environment_error(msg: String) -> Refusal {
    Refusal::new(ErrorCode::InvalidEnvironment, msg)
}

#[cfg(test)]
mod tests;
