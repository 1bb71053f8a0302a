//! The network configuration on standard input.
//!
//! Unknown keys are ignored, as the specification wants. Known keys with a meaning that this network cannot give
//! them are refused: a setting that is silently without effect is worse than none.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weave_proto::Cidr;
use weave_proto::local::cni::{
    AttachmentKey, DATA_DIR, ErrorCode, MAX_LINE, RUN_DIR, Refusal, Route, Settings,
};

use crate::env::is_cni_name;
use crate::result::Dns;

/// Every version of the specification, oldest first. A configuration's version must equal one of them.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One of [`VERSIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(usize);

impl Version {
    /// The first version with a list of interfaces in its result, and with chains of plugins.
    pub(crate) const LISTS: Self = Self(2);
    /// The first version with CHECK.
    pub(crate) const CHECK: Self = Self(4);
    /// The first version without the family beside each address.
    pub(crate) const FAMILY_IMPLIED: Self = Self(5);
    /// The first version with GC, STATUS and an interface's MTU.
    pub(crate) const GC: Self = Self(6);

    /// The version of this text, by equality; a configuration that names none means the oldest.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = if text.is_empty() { VERSIONS[0] } else { text };
        VERSIONS.iter().position(|&version| version == text).map(Self)
    }

    pub(crate) const fn text(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// A configuration that makes sense.
#[derive(Debug)]
pub(crate) struct Conf {
    pub(crate) version: Version,
    pub(crate) network: String,
    pub(crate) settings: Settings,
    /// The gateway that `weave-ipam` is to name.
    pub(crate) gateway: Option<IpAddr>,
    /// The IPAM plugin to call instead of the agent's own.
    pub(crate) delegate: Option<String>,
    pub(crate) dns: Option<Dns>,
    pub(crate) run_dir: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) prev_result: Option<Value>,
    pub(crate) valid: Vec<AttachmentKey>,
    /// A request that we cannot fulfil, kept aside since only ADD fails by it.
    pub(crate) unsupported: Option<Refusal>,
}

/// The configuration as it is written.
#[derive(Debug)]
struct Written {
    cni_version: Option<String>,
    name: Option<String>,
    bridge: Option<String>,
    mtu: Option<u32>,
    hairpin_mode: Option<bool>,
    is_gateway: Option<bool>,
    ip_masq: Option<bool>,
    ipam: Map,
    dns: Option<Dns>,
    run_dir: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    prev_result: Option<Value>,
    runtime_config: Map,
    valid: Option<Vec<WrittenAttachment>>,
}

type Map = serde_json::Map<String, Value>;

impl Written {
    fn read(mut object: Map) -> Result<Self, Refusal> {
        let section = &mut object;
        // The name this key had before 1.1.0 was released.
        let older_valid = take(section, "cni.dev/attachments")?;
        Ok(Self {
            cni_version: take(section, "cniVersion")?,
            name: take(section, "name")?,
            bridge: take(section, "bridge")?,
            mtu: take(section, "mtu")?,
            hairpin_mode: take(section, "hairpinMode")?,
            is_gateway: take(section, "isGateway")?,
            ip_masq: take(section, "ipMasq")?,
            ipam: take(section, "ipam")?.unwrap_or_default(),
            dns: take(section, "dns")?,
            run_dir: take(section, "runDir")?,
            data_dir: take(section, "dataDir")?,
            prev_result: section.remove("prevResult"),
            runtime_config: take(section, "runtimeConfig")?.unwrap_or_default(),
            valid: take(section, "cni.dev/valid-attachments")?.or(older_valid),
        })
    }
}

/// The value of a key; none if it is not there or null.
fn take<T: DeserializeOwned>(section: &mut Map, key: &str) -> Result<Option<T>, Refusal> {
    let Some(value) = section.remove(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let shown = value.to_string();
    serde_json::from_value(value).map(Some).map_err(|error| {
        let msg = format!("cannot read {key} in the configuration: {error}");
        Refusal::new(ErrorCode::Decode, msg).with_details(format!("it is {}", shortened(&shown)))
    })
}

fn shortened(text: &str) -> String {
    /// Enough to find the place in a file.
    const SHOWN: usize = 60;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain(['…']).collect()
    }
}

/// Our keys that are not keys of the specification: those that a runtime has no reason to write otherwise.
const OURS: [&str; 7] = ["bridge", "mtu", "hairpinMode", "isGateway", "ipMasq", "runDir", "dataDir"];

/// A word for the log about each key that looks like one of ours and is none: it is ignored, as the specification wants.
pub(crate) fn hints(input: &[u8]) -> Vec<String> {
    let Ok(object) = serde_json::from_slice::<Map>(input) else { return Vec::new() };
    let plain = |key: &str| key.to_lowercase().replace(['_', '-'], "");
    let meant = |key: &String| {
        let like = |ours: &&str| {
            let (one, other) = (plain(key), plain(ours));
            *ours != key && (one == other || one.len() > 4 && (one.contains(&other) || other.contains(&one)))
        };
        OURS.iter().find(|ours| **ours == key).is_none().then(|| OURS.iter().copied().find(like)).flatten()
    };
    object
        .keys()
        .filter_map(|key| Some((key, meant(key)?)))
        .map(|(key, ours)| format!("the key {key:?} of the configuration is ignored: did you mean {ours:?}?"))
        .collect()
}

#[derive(Debug, Default)]
struct WrittenIpam {
    subnet: Option<String>,
    gateway: Option<IpAddr>,
    routes: Option<Vec<WrittenRoute>>,
}

#[derive(Debug, Deserialize)]
struct WrittenRoute {
    dst: String,
    gw: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
struct WrittenAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// Standard input, up to a limit.
///
/// # Errors
/// Code 5 if it cannot be read, code 6 if it is beyond all reason.
pub(crate) fn read_input() -> Result<Vec<u8>, Refusal> {
    let mut input = Vec::new();
    let limit = MAX_LINE as u64;
    let read = std::io::stdin().lock().take(limit + 1).read_to_end(&mut input);
    read.map_err(|error| {
        Refusal::new(ErrorCode::Io, format!("cannot read the configuration from standard input: {error}"))
    })?;
    if input.len() as u64 > limit {
        return Err(Refusal::new(
            ErrorCode::Decode,
            format!("the configuration is longer than {limit} bytes"),
        ));
    }
    Ok(input)
}

/// The configuration in `input`.
///
/// # Errors
/// Code 6 if it is no JSON of the right shape, 1 for an unknown version, 7 for what makes no sense.
pub(crate) fn parse(input: &[u8]) -> Result<Conf, Refusal> {
    let written = serde_json::from_slice(input)
        .map_err(|error| Refusal::new(ErrorCode::Decode, format!("cannot read the configuration: {error}")));
    let written = Written::read(written?)?;
    let version = version(written.cni_version.as_deref().unwrap_or_default())?;
    let network = written.name.clone().unwrap_or_default();
    if !is_cni_name(&network) {
        return Err(invalid(format!("invalid network name {network:?}"))
            .with_details("name: a letter or digit, then letters, digits, '_', '.' and '-'"));
    }
    let unsupported = unsupported(&written);
    let runtime = lower_case(written.runtime_config);
    let (delegate, ipam) = ipam(written.ipam)?;
    Ok(Conf {
        version,
        network,
        settings: Settings {
            bridge: written.bridge.filter(|name| !name.is_empty()),
            hairpin: written.hairpin_mode,
            mtu: written.mtu.filter(|&mtu| mtu != 0),
            subnet: ipam.subnet.as_deref().map(|text| cidr("ipam.subnet", text)).transpose()?,
            routes: ipam.routes.map(routes).transpose()?,
        },
        gateway: ipam.gateway,
        delegate,
        dns: runtime.get("dns").and_then(runtime_dns).or(written.dns),
        run_dir: absolute("runDir", written.run_dir, RUN_DIR)?,
        data_dir: absolute("dataDir", written.data_dir, DATA_DIR)?,
        prev_result: written.prev_result.filter(|value| !value.is_null()),
        valid: written.valid.unwrap_or_default().into_iter().map(Into::into).collect(),
        unsupported,
    })
}

impl From<WrittenAttachment> for AttachmentKey {
    fn from(written: WrittenAttachment) -> Self {
        Self { container: written.container, interface: written.ifname }
    }
}

/// The IPAM section: another plugin's name, or what it says to our own. What it says to another plugin is between
/// the two.
fn ipam(mut section: Map) -> Result<(Option<String>, WrittenIpam), Refusal> {
    let within = |refusal: Refusal| Refusal {
        msg: refusal.msg.replacen("cannot read ", "cannot read ipam.", 1),
        ..refusal
    };
    let name: Option<String> = take(&mut section, "type").map_err(within)?;
    if let Some(delegate) = name.filter(|name| !name.is_empty() && name != "weave-ipam") {
        return Ok((Some(delegate), WrittenIpam::default()));
    }
    let written = WrittenIpam {
        subnet: take(&mut section, "subnet").map_err(within)?,
        gateway: take(&mut section, "gateway").map_err(within)?,
        routes: take(&mut section, "routes").map_err(within)?,
    };
    Ok((None, written))
}

fn version(text: &str) -> Result<Version, Refusal> {
    Version::parse(text).ok_or_else(|| {
        Refusal::new(ErrorCode::IncompatibleVersion, "incompatible CNI versions").with_details(format!(
            "config is {text:?}, plugin supports [{}]",
            VERSIONS.map(|version| format!("{version:?}")).join(", ")
        ))
    })
}

/// What Weave Net refused too: the node's own address and its masquerading are settings of the agent, and they
/// hold for all pods. And what a runtime may ask for a single pod and we do not give: its address or MAC.
fn unsupported(written: &Written) -> Option<Refusal> {
    let field = |name: &str, value: &Value, remedy: &str| {
        let code = ErrorCode::UnsupportedField;
        Some(Refusal::new(code, format!("unsupported field {name} with value {value}")).with_details(remedy))
    };
    if written.is_gateway == Some(true) {
        return field("isGateway", &true.into(), "remove it: the bridge always has the node's address");
    }
    if written.ip_masq == Some(true) {
        return field(
            "ipMasq",
            &true.into(),
            "remove it: the agent masquerades traffic that leaves the network",
        );
    }
    let runtime = lower_case(written.runtime_config.clone());
    let asked = ["ips", "mac", "ipranges"].into_iter().find_map(|name| Some((name, runtime.get(name)?)));
    asked.and_then(|(name, value)| {
        field(&format!("runtimeConfig.{name}"), value, "remove the capability: the agent chooses addresses")
    })
}

/// containerd writes the keys of runtimeConfig as its Go structures are called, CRI-O in camel case.
fn lower_case(map: Map) -> Map {
    let lower = |value| match value {
        Value::Object(inner) => Value::Object(lower_case(inner)),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            other
        }
    };
    map.into_iter().map(|(key, value)| (key.to_lowercase(), lower(value))).collect()
}

/// The `dns` capability: servers, searches, options.
fn runtime_dns(value: &Value) -> Option<Dns> {
    let list = |key: &str| -> Vec<String> {
        let values = value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let dns = Dns {
        nameservers: list("servers"),
        domain: String::new(),
        search: list("searches"),
        options: list("options"),
    };
    (!dns.is_empty()).then_some(dns)
}

fn routes(written: Vec<WrittenRoute>) -> Result<Vec<Route>, Refusal> {
    let route = |written: WrittenRoute| Ok(Route { dst: cidr("ipam.routes", &written.dst)?, gw: written.gw });
    written.into_iter().map(route).collect()
}

/// A network, with host bits cleared as the reference library does.
pub(crate) fn cidr(field: &str, text: &str) -> Result<Cidr, Refusal> {
    let parsed = text
        .split_once('/')
        .and_then(|(address, prefix)| Cidr::containing(address.parse().ok()?, prefix.parse().ok()?));
    parsed.ok_or_else(|| invalid(format!("{field}: {text:?} is no network such as 10.32.0.0/12")))
}

fn absolute(field: &str, path: Option<PathBuf>, default: &str) -> Result<PathBuf, Refusal> {
    let path = path.unwrap_or_else(|| Path::new(default).to_owned());
    if path.is_absolute() { Ok(path) } else { Err(invalid(format!("{field}: {path:?} is no absolute path"))) }
}

fn invalid(msg: String) -> Refusal {
    Refusal::new(ErrorCode::InvalidConfig, msg)
}

#[cfg(test)]
mod tests;
