//! The command line as clap reads it: every command, its flags and the help that teaches it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, Id, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{DEFAULT_DATA_DIR, DEFAULT_RUN_DIR, Settings, Target};
use crate::render::View;

/// The whole command line.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "weave", version, about = ABOUT, long_about = LONG_ABOUT, after_long_help = AFTER_HELP,
          subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct CommandLine {
    /// Where the sockets of the agent are
    ///
    /// weave.sock is for this command, cni.sock for the CNI plugin. Only needed where several agents run on one
    /// machine, each in a network namespace of its own.
    #[arg(long, global = true, value_name = "DIR", env = "WEAVE_RUN_DIR", default_value = DEFAULT_RUN_DIR,
          help_heading = "Files")]
    pub run_dir: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: Action,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Run the agent of this node
    #[command(long_about = LAUNCH, after_long_help = LAUNCH_EXAMPLES)]
    Launch(Box<Settings>),

    /// Show what the agent believes
    #[command(long_about = STATUS, after_long_help = STATUS_EXAMPLES)]
    Status(StatusArgs),

    /// Print all that the agent knows, as JSON
    #[command(long_about = REPORT, after_long_help = REPORT_EXAMPLES)]
    Report(ReportArgs),

    /// List the containers of this node and their addresses
    #[command(long_about = PS)]
    Ps(PsArgs),

    /// Look for peers at further places
    #[command(long_about = CONNECT, after_long_help = CONNECT_EXAMPLES)]
    Connect(ConnectArgs),

    /// Look for peers at these places no longer
    #[command(long_about = FORGET)]
    Forget(ForgetArgs),

    /// Remove a peer that will never come back, and take over its addresses
    #[command(long_about = RMPEER, after_long_help = RMPEER_EXAMPLES)]
    Rmpeer(RmpeerArgs),

    /// Wait until addresses can be given out
    #[command(long_about = PRIME)]
    Prime(PrimeArgs),

    /// Remove every trace of weave from this node
    #[command(long_about = RESET)]
    Reset(ResetArgs),

    /// Install the CNI plugin on this node
    #[command(long_about = SETUP_CNI)]
    SetupCni(SetupCniArgs),

    /// Print the versions of this command and of the running agent
    Version(JsonArgs),

    /// Print a completion script for a shell
    #[command(long_about = COMPLETION)]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct JsonArgs {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `weave status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// One part, in full [default: all, in short]
    #[arg(value_name = "PART")]
    pub part: Option<Part>,

    /// How to print.
    #[command(flatten)]
    pub output: JsonArgs,
}

/// A part of the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Connections to peers, and attempts at them
    Connections,
    /// All peers and their connections
    Peers,
    /// Who owns how many addresses
    Ipam,
    /// Where the agent looks for peers
    Targets,
}

impl From<Option<Part>> for View {
    fn from(part: Option<Part>) -> Self {
        match part {
            None => Self::Summary,
            Some(Part::Connections) => Self::Connections,
            Some(Part::Peers) => Self::Peers,
            Some(Part::Ipam) => Self::Ipam,
            Some(Part::Targets) => Self::Targets,
        }
    }
}

/// `weave report`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// Only the value at this JSON pointer, a text without quotes
    #[arg(short, long, value_name = "POINTER")]
    pub format: Option<String>,

    /// JSON is what this command prints anyway
    #[arg(long, hide = true)]
    pub json: bool,
}

/// `weave ps`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PsArgs {
    /// Only these: the beginning of a container id, or a pod as namespace/name
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,

    /// How to print.
    #[command(flatten)]
    pub output: JsonArgs,
}

/// `weave connect`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ConnectArgs {
    /// Forget all earlier targets first
    #[arg(long)]
    pub replace: bool,

    /// Where to look: host or host:port, an IPv6 address with a port in brackets
    #[arg(value_name = "PEER", required_unless_present = "replace")]
    pub peers: Vec<Target>,

    /// How to print.
    #[command(flatten)]
    pub output: JsonArgs,
}

/// `weave forget`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ForgetArgs {
    /// The targets, as `weave status targets` lists them
    #[arg(value_name = "PEER", required = true)]
    pub peers: Vec<Target>,

    /// How to print.
    #[command(flatten)]
    pub output: JsonArgs,
}

/// `weave rmpeer`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RmpeerArgs {
    /// Even if the peer seems to be alive; its pods lose their addresses
    #[arg(long)]
    pub force: bool,

    /// The peers, by name or by host name
    #[arg(value_name = "PEER", required = true)]
    pub peers: Vec<String>,

    /// How to print.
    #[command(flatten)]
    pub output: JsonArgs,
}

/// `weave prime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct PrimeArgs {
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// `weave reset`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ResetArgs {
    /// If the agent runs, have it end first
    #[arg(long)]
    pub force: bool,

    /// Remove what Weave Net left on this node, and nothing of this version
    #[arg(long, conflicts_with = "force")]
    pub weave_net: bool,

    /// Show what Weave Net left, and remove nothing
    #[arg(long, requires = "weave_net")]
    pub dry_run: bool,

    /// Where the agent keeps its state
    #[arg(long, value_name = "DIR", env = "WEAVE_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Where the CNI plugin was installed.
    #[command(flatten)]
    pub cni: CniDirs,
}

/// `weave setup-cni`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SetupCniArgs {
    /// Where to install.
    #[command(flatten)]
    pub dirs: CniDirs,

    /// The plugin's program [default: weave-net beside this program]
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,

    /// Whether a pod may reach itself through a Service; always, whatever is said here
    ///
    /// Weave Net could do without. Here every packet of a pod passes the node, which the guard at the pod's port sees to,
    /// so that the mode can cause no loop.
    #[arg(long, value_name = "BOOL", env = "HAIRPIN_MODE", default_value_t = true, action = ArgAction::Set,
          value_parser = BoolishValueParser::new())]
    pub hairpin_mode: bool,

    /// Install no network: an agent in a cluster writes it when pods can be attached
    #[arg(long)]
    pub no_network: bool,

    /// Where the agent keeps its state
    #[arg(long, value_name = "DIR", env = "WEAVE_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Where container runtimes look for CNI plugins.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CniDirs {
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIR", env = "WEAVE_CNI_PLUGIN_DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,

    /// Where the container runtime looks for networks
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// The command line's description, with the environment variables that are set but empty left out: manifests
/// pass on variables that nobody filled in.
#[must_use]
pub fn command() -> Command {
    let command = with_usable_variables(CommandLine::command());
    // Help does not depend on the terminal in which the tests run.
    if cfg!(test) { command.term_width(100) } else { command }
}

fn with_usable_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env() {
            Some(name) if is_empty(name) => arg.env(None::<&'static str>),
            Some(_) | None => arg.hide_env_values(true),
        })
        .mut_subcommands(with_usable_variables)
}

/// The variables that some flag reads, and EXTRA_ARGS.
pub(crate) fn variables() -> BTreeSet<String> {
    let command = CommandLine::command();
    let arguments = command.get_arguments().chain(command.get_subcommands().flat_map(Command::get_arguments));
    let names = arguments.filter_map(Arg::get_env).map(|name| name.to_string_lossy().into_owned());
    names.chain(["EXTRA_ARGS".to_owned()]).collect()
}

/// The words of the command line and behind them those of EXTRA_ARGS, which Weave Net's manifests append for the agent
/// of a cluster. It means nothing to any other command.
pub(crate) fn with_extra(mut words: Vec<OsString>, extra: &str) -> Vec<OsString> {
    let has = |wanted: &str| words.iter().skip(1).any(|word| word == wanted);
    if has("launch") && has("--kubernetes") {
        words.extend(extra.split_whitespace().map(OsString::from));
    }
    words
}

/// What was given to the command, by flag or by variable, for the log; never a secret itself.
#[must_use]
pub(crate) fn given(matches: &ArgMatches) -> String {
    let Some((name, matches)) = matches.subcommand() else { return String::new() };
    let command = command();
    let is_group = |id: &Id| {
        let groups = command.find_subcommand(name).into_iter().flat_map(Command::get_groups);
        groups.into_iter().any(|group| group.get_id() == id)
    };
    let mut words = Vec::new();
    for id in matches.ids().filter(|id| id.as_str() != "password" && !is_group(id)) {
        let is_given = matches!(
            matches.value_source(id.as_str()),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        );
        if let (true, Ok(Some(values))) = (is_given, matches.try_get_raw(id.as_str())) {
            let values: Vec<_> = values.map(OsStr::to_string_lossy).collect();
            words.push(format!("{}={}", id.as_str().replace('_', "-"), values.join(",")));
        }
    }
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// For a bad value that nobody wrote on the command line: which variable it comes from.
pub(crate) fn variable_note(error: &clap::Error) -> Option<String> {
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return None;
    };
    let flag = flag.split(' ').next()?.strip_prefix("--")?;
    let command = command();
    let arguments = command.get_arguments().chain(command.get_subcommands().flat_map(Command::get_arguments));
    let name = arguments.filter(|arg| arg.get_long() == Some(flag)).find_map(Arg::get_env)?;
    let is_from_there = std::env::var_os(name).is_some_and(|found| found.to_string_lossy() == *value);
    is_from_there.then(|| format!("the value comes from the environment variable {}", name.to_string_lossy()))
}

/// For a flag or command of Weave Net that this program does not have: what became of it.
pub(crate) fn weave_net_note(error: &clap::Error) -> Option<&'static str> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.split('=').next().unwrap_or_default().to_owned()),
        Some(_) | None => None,
    };
    let word = named(ContextKind::InvalidArg).or_else(|| named(ContextKind::InvalidSubcommand))?;
    let word = word.trim_start_matches('-');
    FORMER.iter().find(|(words, _)| words.contains(&word)).map(|(_, note)| *note)
}

/// Weave Net's flags and commands without a successor by the same name.
const FORMER: [(&[&str], &str); 11] = [
    (
        &["name"],
        "a peer's name is made from its key and kept in the data directory; --nickname sets what people read",
    ),
    (
        &[
            "no-dns",
            "dns-domain",
            "dns-listen-address",
            "dns-ttl",
            "dns-add",
            "dns-remove",
            "dns-lookup",
            "dns-args",
        ],
        "there is no weaveDNS in this version",
    ),
    (
        &["plugin", "proxy", "env", "config", "plugin-v2"],
        "there is no Docker proxy or plugin; container runtimes use the CNI plugin, see `weave setup-cni`",
    ),
    (&["no-bridged-fastdp"], "--no-fastdp does without the kernel's VXLAN"),
    (&["awsvpc"], "there is no AWS VPC mode in this version"),
    (&["status-addr"], "status is served on --http-addr, metrics on --metrics-addr"),
    (&["db-prefix"], "the state is kept in --data-dir"),
    (
        &["expose", "hide"],
        "every node has an address on the bridge and reaches all pods, always: there is nothing to expose or hide",
    ),
    (
        &["attach", "detach", "run", "start", "restart"],
        "containers are attached by their runtime through the CNI plugin, see `weave setup-cni`",
    ),
    (&["launch-router", "launch-proxy", "launch-plugin", "setup"], "the agent is `weave launch`, all in one"),
    (&["stop"], "send the agent SIGTERM, for example with `systemctl stop`; the data path stays"),
];

const ABOUT: &str = "A network for containers on many hosts";

const LONG_ABOUT: &str = "\
A network for containers on many hosts.

Each host runs one agent, `weave launch`. The agents (peers) find each other, share out one range of addresses \
among themselves without any database, attach containers to the bridge `weave` through a CNI plugin, and carry \
their packets to the host that owns the destination's address.

All other commands ask the agent of this host, over a socket that only root can open.";

const AFTER_HELP: &str = "\
Start here:
  host1# weave launch --ipalloc-init consensus=3 --secret-file /etc/weave/secret host2 host3
  host2# weave launch --ipalloc-init consensus=3 --secret-file /etc/weave/secret host1 host3
  host3# weave launch --ipalloc-init consensus=3 --secret-file /etc/weave/secret host1 host2
  host1# weave setup-cni
  host1# weave status

Exit status:
  0  done
  1  it failed; the message says what and what would help
  2  the command line is not understood
  3  the agent does not run
  4  the agent is not ready
  5  only root may do that

Files:
  /run/weave/weave.sock          the socket of this command
  /var/lib/weave                 what must survive a reboot
  /opt/cni/bin/weave-net         the CNI plugin
  /etc/cni/net.d/10-weave.conflist   the CNI network";

const LAUNCH: &str = "\
Run the agent of this node, in the foreground, until it is sent SIGTERM or SIGINT. Needs root (or the capabilities \
NET_ADMIN and NET_RAW).

The agent looks for the peers given, listens for others on UDP port 6783, and carries pod packets on UDP port 6784. \
When it ends, the data path stays: pods talk on, and the next launch takes over without losing a packet. \
`weave reset` removes everything.";

const LAUNCH_EXAMPLES: &str = "\
Examples:
  A mesh of one, to try out:
    weave launch
  Three nodes that found a mesh together; run on each, naming the others:
    weave launch --ipalloc-init consensus=3 --secret-file /etc/weave/secret 10.0.0.2 10.0.0.3
  A fourth node; one peer is enough, it tells of the others:
    weave launch --secret-file /etc/weave/secret 10.0.0.1
  After a reboot, with the peers that were known before:
    weave launch --secret-file /etc/weave/secret --resume
  In a pod of a Kubernetes cluster, on each Node:
    weave launch --kubernetes --node-name \"$NODE_NAME\"";

const STATUS: &str = "\
Show what the agent believes, at this moment. Without PART, all of it in short.

Exit status 3 says that the agent does not run, 4 (without PART only) that it cannot attach pods yet; what it waits \
for stands in the first lines.";

const STATUS_EXAMPLES: &str = "\
Examples:
  weave status
  weave status connections
  weave status peers --json | jq '.[] | select(.reachable | not) | .nickname'";

const REPORT: &str = "\
Print all that the agent knows, as one JSON document. Fields are added by later versions, never changed. \
--format picks one value by its JSON pointer (RFC 6901).";

const REPORT_EXAMPLES: &str = "\
Examples:
  weave report
  weave report -f /ipam/range
  weave report -f /router/connections/0/state";

const PS: &str = "\
List the containers of this node that have an address: the container's id, its MAC address, its addresses, its pod. \
The row `weave:expose` is the node's own address on the bridge.";

const CONNECT: &str = "\
Look for peers at further places. The agent keeps trying until it is told to forget them, also after a restart with \
--resume. Discovered peers need not be named: one target that answers tells of all others.";

const CONNECT_EXAMPLES: &str = "\
Examples:
  weave connect 10.0.0.7 node8.example:6783 '[fd00::9]:6783'
  weave connect --replace 10.0.0.7";

const FORGET: &str = "\
Look for peers at these places no longer. A connection that exists stays, and a peer that is learned from others is \
still dialled unless the agent was started with --no-discovery.";

const RMPEER: &str = "\
Remove a peer that will never come back, and take over its addresses. Run it on one node only.

A peer that is alive is refused: removing it would give its pods' addresses to others. Should a removed peer come \
back, it gives up what it had and joins as a new one. The addresses can be used once a majority of the living peers \
has been told.

The peer is named by its MAC-like name, or by its host name if only one peer has it.";

const RMPEER_EXAMPLES: &str = "\
Examples:
  weave status ipam
  weave rmpeer node7
  weave rmpeer 7a:3f:00:00:00:07";

const PRIME: &str = "\
Wait until the range has been split and this peer can give out addresses. For scripts that start peers one after the \
other.";

const RESET: &str = "\
Remove every trace of weave from this node: bridge, tunnel devices, routes, firewall table, addresses, identity, \
sockets, the CNI plugin and its network. Pods that are still attached lose their network. The kernel's forwarding \
(net.ipv4.ip_forward) stays on, since others may rely on it by now.

The other peers go on counting the addresses of this peer as taken: run `weave rmpeer` on one of them.

With --weave-net, what is removed is instead what Weave Net left: its devices (vethwe-bridge, vxlan-6784, datapath, \
its bridge unless the agent has made it its own), the chains WEAVE* and the rules that lead there in both iptables, its \
ipsets, its plugin, network and database. The agent may be running. Do it when Weave Net has ended on this node and no \
pod uses its network; --dry-run shows what it would be.";

const SETUP_CNI: &str = "\
Install the CNI plugin weave-net (with weave-ipam, the same program by another name) and the network \
10-weave.conflist. Each file appears in one step, the network last. A network that exists already and was changed by \
hand is left as it is.

The standard plugins portmap (hostPort) and bandwidth are put behind weave-net if they are in the plugins' directory \
by then: a runtime refuses a network that names a plugin which it cannot find. What is missing is said, with what pods \
go without. The network offers CNI 1.1.0 (with STATUS and GC) if all of them say that they speak it. An agent with directories of its own (--run-dir, --data-dir) is found through the network's file.";

const COMPLETION: &str = "\
Print a completion script for a shell, for example:

  weave completion bash > /etc/bash_completion.d/weave";
