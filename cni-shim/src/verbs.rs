//! The verbs of `weave-net`.

use std::os::fd::BorrowedFd;

use weave_proto::Cidr;
use weave_proto::local::cni::{
    Add, Address, Answer, Call, Check, Del, ErrorCode, Expected, Gc, HOST_INTERFACE_PREFIX, Link, Moment,
    Refusal, Route, Tombstone, mac_from_text,
};

use crate::agent::{
    ADD_PATIENCE, CHECK_PATIENCE, DEL_PATIENCE, STATUS_PATIENCE, ask, ask_for, expect_done, now, unexpected,
};
use crate::conf::{Conf, Version, cidr};
use crate::delegate::{Delegate, Lease};
use crate::env::{Environment, Verb};
use crate::netns::{NetnsError, PodNetns};
use crate::result::{CniResult, Interface};
use crate::{Printed, tombstone};

/// Performs the verb.
///
/// # Errors
/// With the codes of the specification.
pub(crate) fn run(environment: &Environment, conf: &Conf, input: &[u8]) -> Result<Printed, Refusal> {
    check_version(environment.verb, conf.version)?;
    let delegate = conf.delegate.as_deref().map(|name| Delegate::find(name, environment, input)).transpose();
    match environment.verb {
        Verb::Add => add(environment, conf, delegate?.as_ref()).map(Some),
        Verb::Del => del(environment, conf, delegate).map(|()| None),
        Verb::Check => check(environment, conf, delegate?.as_ref()).map(|()| None),
        Verb::Gc => gc(conf, delegate).map(|()| None),
        Verb::Status => status(conf, delegate?.as_ref()).map(|()| None),
        Verb::Version => Ok(None),
    }
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
pub(crate) fn check_version(verb: Verb, version: Version) -> Result<(), Refusal> {
    let since = match verb {
        Verb::Check => Version::CHECK,
        Verb::Gc | Verb::Status => Version::GC,
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    let (verb, since) = (format!("{verb:?}").to_uppercase(), since.text());
    Err(Refusal::new(
        ErrorCode::IncompatibleVersion,
        format!("config version {:?} does not allow {verb}, which came with {since}", version.text()),
    ))
}

/// What ADD refuses: what the configuration or the runtime wants for this pod and we do not give.
fn refuse_unsupported(environment: &Environment, conf: &Conf) -> Result<(), Refusal> {
    if let Some(refusal) = &conf.unsupported {
        return Err(refusal.clone());
    }
    for name in ["IP", "MAC"] {
        if let Some(value) = environment.arg(name) {
            let msg = format!("unsupported field CNI_ARGS {name} with value {value:?}");
            let remedy = "leave it out: the agent chooses addresses";
            return Err(Refusal::new(ErrorCode::UnsupportedField, msg).with_details(remedy));
        }
    }
    Ok(())
}

fn add(
    environment: &Environment,
    conf: &Conf,
    delegate: Option<&Delegate<'_>>,
) -> Result<serde_json::Value, Refusal> {
    let begun = now();
    refuse_unsupported(environment, conf)?;
    let earlier = conf.prev_result.as_ref().map(CniResult::read).transpose()?;
    let netns = PodNetns::open(&environment.netns).map_err(NetnsError::refusal)?;
    let lease = delegate.map(Delegate::add).transpose()?;
    let attached =
        add_call(environment, conf, lease.as_ref(), begun).and_then(|call| attach(conf, call, &netns));
    let attached = match (attached, delegate) {
        (Ok(attached), _) => attached,
        (Err(failure), Some(delegate)) => return Err(delegate.give_back(failure)),
        (Err(failure), None) => return Err(failure),
    };
    let mut result = CniResult::of(&attached, &environment.netns);
    result.dns = conf.dns.clone().or_else(|| lease.map(|lease| lease.dns)).unwrap_or_default();
    let result = match earlier {
        Some(earlier) => result.after(earlier),
        None => result,
    };
    Ok(result.write(conf.version))
}

fn add_call(
    environment: &Environment,
    conf: &Conf,
    lease: Option<&Lease>,
    begun: Moment,
) -> Result<Add, Refusal> {
    let mut settings = conf.settings.clone();
    if let Some(lease) = lease {
        // The range is the other plugin's affair, and so are the routes that it names.
        settings.subnet = None;
        if !lease.routes.is_empty() {
            let route = |route: &crate::result::ResultRoute| {
                Ok(Route { dst: cidr("route of the IPAM plugin", &route.dst)?, gw: route.gw })
            };
            settings.routes = Some(lease.routes.iter().map(route).collect::<Result<_, Refusal>>()?);
        }
    }
    Ok(Add {
        key: environment.key.clone(),
        network: conf.network.clone(),
        netns: environment.netns.clone(),
        begun,
        pod: environment.pod(),
        settings,
        given: lease.map(|lease| lease.given.clone()),
    })
}

fn attach(conf: &Conf, call: Add, netns: &PodNetns) -> Result<weave_proto::local::cni::Attached, Refusal> {
    let limits = (ADD_PATIENCE, ErrorCode::TryAgain);
    match ask_for(&conf.run_dir, Call::Add(call), &netns.descriptors(), limits)? {
        Answer::Attached(attached) => Ok(attached),
        other @ (Answer::Allocated(_) | Answer::Done | Answer::Refused(_)) => Err(unexpected(&other)),
    }
}

/// The link and the agent's record first, then a delegated address, as ADD made them in the other order. Each is
/// tried even if the other fails.
fn del(environment: &Environment, conf: &Conf, delegate: Found<'_>) -> Result<(), Refusal> {
    let begun = now();
    // Looked at first: a DEL for the node's own namespace is a mistake, not a vanished pod.
    let netns = pod_to_delete(&environment.netns)?;
    let del = Del { key: environment.key.clone(), network: conf.network.clone(), begun };
    let detached = detach(conf, del, netns.as_ref());
    let released = delegate.and_then(|found| found.map_or(Ok(()), |delegate| delegate.forward("DEL")));
    detached.and(released)
}

/// The plugin for addresses, if there is one and it was found.
type Found<'a> = Result<Option<Delegate<'a>>, Refusal>;

fn pod_to_delete(path: &str) -> Result<Option<PodNetns>, Refusal> {
    if path.is_empty() {
        return Ok(None);
    }
    match PodNetns::open(path) {
        Ok(netns) => Ok(Some(netns)),
        Err(own @ NetnsError::Own(_)) => Err(own.refusal()),
        Err(NetnsError::Gone(_) | NetnsError::Closed(_)) => Ok(None),
    }
}

fn detach(conf: &Conf, del: Del, netns: Option<&PodNetns>) -> Result<(), Refusal> {
    let descriptors = netns.map(PodNetns::descriptors);
    let descriptors: &[BorrowedFd<'_>] = descriptors.as_ref().map_or(&[], |both| both);
    match ask(&conf.run_dir, Call::Del(del.clone()), descriptors, DEL_PATIENCE) {
        Ok(Answer::Refused(refusal)) => Err(refusal),
        Ok(answer) => expect_done(&answer),
        // Nobody answers: the pod goes all the same.
        Err(_unanswered) => {
            if let Some(netns) = netns {
                // Best effort: the agent, told by the note, removes the link from its own end.
                let _left_to_the_agent = netns.remove_link(&del.key);
            }
            let host_interface = conf.prev_result.as_ref().and_then(host_interface);
            tombstone::leave(&conf.data_dir, &Tombstone { del, host_interface, ipam_only: false })
        }
    }
}

/// The host's end of the link, from what ADD answered.
fn host_interface(prev_result: &serde_json::Value) -> Option<String> {
    let result = CniResult::read(prev_result).ok()?;
    let ours = |one: &Interface| one.sandbox.is_empty() && one.name.starts_with(HOST_INTERFACE_PREFIX);
    result.interfaces.into_iter().find(ours).map(|one| one.name)
}

fn check(environment: &Environment, conf: &Conf, delegate: Option<&Delegate<'_>>) -> Result<(), Refusal> {
    let prev_result = conf.prev_result.as_ref().ok_or_else(|| {
        Refusal::new(
            ErrorCode::InvalidConfig,
            "CHECK needs the prevResult of ADD, and the configuration has none",
        )
    })?;
    let result = CniResult::read(prev_result)?;
    let netns = PodNetns::open(&environment.netns).map_err(NetnsError::refusal)?;
    if let Some(delegate) = delegate {
        delegate.forward("CHECK")?;
    }
    let expected = expected(&result, environment)?;
    let call = Check { key: environment.key.clone(), network: conf.network.clone(), expected };
    let limits = (CHECK_PATIENCE, ErrorCode::TryAgain);
    expect_done(&ask_for(&conf.run_dir, Call::Check(call), &netns.descriptors(), limits)?)
}

/// The part of ADD's final result that is about this attachment; other plugins of the chain may have added to it.
fn expected(result: &CniResult, environment: &Environment) -> Result<Expected, Refusal> {
    let is_pod = |one: &&Interface| !one.sandbox.is_empty() && one.name == environment.key.interface;
    let pod_position = result.interfaces.iter().position(|one| is_pod(&one));
    let is_ours = |one: &&Interface| one.sandbox.is_empty() && one.name.starts_with(HOST_INTERFACE_PREFIX);
    let ours = |interface: Option<usize>| interface.is_none() || interface == pod_position;
    let addresses = result.ips.iter().filter(|ip| ours(ip.interface));
    let routes = result
        .routes
        .iter()
        .map(|route| Ok(Route { dst: cidr("prevResult.routes", &route.dst)?, gw: route.gw }));
    Ok(Expected {
        host: result.interfaces.iter().filter(is_ours).map(link).collect::<Result<_, Refusal>>()?,
        pod: result.interfaces.iter().find(is_pod).map(link).transpose()?,
        addresses: addresses.map(address).collect::<Result<_, Refusal>>()?,
        routes: routes.collect::<Result<_, Refusal>>()?,
    })
}

fn link(interface: &Interface) -> Result<Link, Refusal> {
    let Interface { name, mac: text, mtu, .. } = interface;
    let mac = mac_from_text(text).ok_or_else(|| unreadable(&format!("MAC address {text:?} of {name}")))?;
    Ok(Link { name: name.clone(), mac, mtu: *mtu })
}

/// An address of a prevResult.
pub(crate) fn address(ip: &crate::result::Ip) -> Result<Address, Refusal> {
    let parsed = ip.address.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
        Cidr::containing(address, prefix).map(|_| Address { address, prefix, gateway: ip.gateway })
    });
    parsed.ok_or_else(|| unreadable(&format!("address {:?}", ip.address)))
}

fn unreadable(what: &str) -> Refusal {
    Refusal::new(ErrorCode::Decode, format!("cannot read the prevResult: {what}"))
}

/// Goes on over errors, and tells of the first.
fn gc(conf: &Conf, delegate: Found<'_>) -> Result<(), Refusal> {
    let call = Gc { network: conf.network.clone(), begun: now(), valid: conf.valid.clone() };
    let limits = (CHECK_PATIENCE, ErrorCode::TryAgain);
    let ours = ask_for(&conf.run_dir, Call::Gc(call), &[], limits).and_then(|answer| expect_done(&answer));
    let theirs = delegate.and_then(|found| found.map_or(Ok(()), |delegate| delegate.forward("GC")));
    ours.and(theirs)
}

fn status(conf: &Conf, delegate: Option<&Delegate<'_>>) -> Result<(), Refusal> {
    let limits = (STATUS_PATIENCE, ErrorCode::NotAvailable);
    expect_done(&ask_for(&conf.run_dir, Call::Status, &[], limits)?)?;
    delegate.map_or(Ok(()), |delegate| delegate.forward("STATUS"))
}
