//! How pods' packets may travel between nodes.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, ValueEnum};
use weave_proto::Cidr;

/// How pods' packets may travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Packets between nodes")]
pub struct TunnelSettings {
    /// The cluster secret, and that pods' packets are to be encrypted; the same on all peers
    ///
    /// As in Weave Net. Other users of this machine can read a command line, so the variable is better, and
    /// --secret-file with --encrypt best: that file can be changed without a restart.
    #[arg(long, value_name = "PASSWORD", env = "WEAVE_PASSWORD", hide_env_values = true)]
    pub password: Option<Password>,

    /// Encrypt pods' packets on their way between nodes
    ///
    /// Packets between two peers are encrypted if one of them wants it. Needs --secret-file.
    #[arg(long, env = "WEAVE_ENCRYPT", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub encrypt: bool,

    /// Do not encrypt towards peers in these networks: CIDR,…
    ///
    /// Packets between two peers go in clear only if each end trusts the network of the other or does not want
    /// encryption.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub trusted_subnets: Vec<Cidr>,

    /// The methods that may carry packets to other nodes, in any order: fastdp, sleeve, quic
    ///
    /// The best that answers is used. fastdp is the kernel's VXLAN on UDP 6784, sleeve sealed records on UDP 6785,
    /// quic the same in a QUIC connection on the control port, made only while nothing better answers.
    #[arg(long, value_name = "METHODS", value_delimiter = ',', default_value = "fastdp,sleeve,quic")]
    pub methods: Vec<Method>,

    /// Do without the kernel's VXLAN
    #[arg(long, env = "WEAVE_NO_FASTDP", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub no_fastdp: bool,
}

/// A way to carry packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Method {
    /// The kernel's VXLAN, in clear
    #[value(name = "fastdp")]
    FastDp,
    /// Sealed records by UDP
    Sleeve,
    /// Sealed records by QUIC
    Quic,
}

/// A password: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl FromStr for Password {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl TunnelSettings {
    /// The password, if there is one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|password| password.0.as_str()).filter(|text| !text.is_empty())
    }

    /// Whether packets are to be encrypted.
    #[must_use]
    pub fn wants_encryption(&self) -> bool {
        self.encrypt || self.password().is_some()
    }

    /// Whether a method may be used at all.
    #[must_use]
    pub fn allows(&self, method: Method) -> bool {
        self.methods.contains(&method) && !(self.no_fastdp && method == Method::FastDp)
    }

    /// Whether anything in user space may be used.
    #[must_use]
    pub fn allows_user_space(&self) -> bool {
        self.allows(Method::Sleeve) || self.allows(Method::Quic)
    }

    /// Why these settings contradict themselves, with whether there is a secret of another source.
    pub(super) fn refusal(&self, has_secret_file: bool) -> Option<String> {
        let nothing_left = !self.allows_user_space() && !self.allows(Method::FastDp);
        if self.password().is_some() && has_secret_file {
            Some(
                "give --password (or WEAVE_PASSWORD) or --secret-file, not both: each is the cluster secret"
                    .to_owned(),
            )
        } else if self.encrypt && self.password().is_none() && !has_secret_file {
            Some(
                "--encrypt needs a secret that not everybody knows: write one to a file, the same on every node, and \
                 pass --secret-file"
                    .to_owned(),
            )
        } else if self.wants_encryption() && !self.allows_user_space() {
            Some(
                "packets are to be encrypted, but --methods allows fastdp alone, which cannot: add sleeve"
                    .to_owned(),
            )
        } else if nothing_left {
            Some("no method is allowed to carry packets: see --methods and --no-fastdp".to_owned())
        } else {
            None
        }
    }
}
