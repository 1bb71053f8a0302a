//! The verbs of `weave-ipam`: an address of the network for another plugin's interface.

use weave_proto::local::cni::{
    Address, Allocate, Answer, Call, Del, ErrorCode, Gc, Refusal, Release, Settings, Tombstone, Verify,
};

use crate::agent::{
    ADD_PATIENCE, CHECK_PATIENCE, DEL_PATIENCE, STATUS_PATIENCE, ask, ask_for, expect_done, now, unexpected,
};
use crate::conf::Conf;
use crate::env::{Environment, Verb};
use crate::result::CniResult;
use crate::verbs::{address, check_version};
use crate::{Printed, tombstone};

/// Performs the verb.
///
/// # Errors
/// With the codes of the specification.
pub(crate) fn run(environment: &Environment, conf: &Conf) -> Result<Printed, Refusal> {
    check_version(environment.verb, conf.version)?;
    match environment.verb {
        Verb::Add => add(environment, conf).map(Some),
        Verb::Del => del(environment, conf).map(|()| None),
        Verb::Check => check(environment, conf).map(|()| None),
        Verb::Gc => {
            let call = Gc { network: conf.network.clone(), begun: now(), valid: conf.valid.clone() };
            done(conf, Call::Prune(call), (CHECK_PATIENCE, ErrorCode::TryAgain))
        }
        Verb::Status => done(conf, Call::Status, (STATUS_PATIENCE, ErrorCode::NotAvailable)),
        Verb::Version => Ok(None),
    }
}

fn done(conf: &Conf, call: Call, limits: (std::time::Duration, ErrorCode)) -> Result<Printed, Refusal> {
    expect_done(&ask_for(&conf.run_dir, call, &[], limits)?)?;
    Ok(None)
}

/// The interface and its configuration belong to the plugin that calls us: keys such as `bridge`, `mtu` or `ipMasq`
/// stand outside our section and are about its interface.
fn add(environment: &Environment, conf: &Conf) -> Result<serde_json::Value, Refusal> {
    if let Some(refusal) = conf.unsupported.as_ref().filter(|refusal| refusal.msg.contains("runtimeConfig")) {
        return Err(refusal.clone());
    }
    let call = Allocate {
        key: environment.key.clone(),
        network: conf.network.clone(),
        netns: environment.netns.clone(),
        begun: now(),
        pod: environment.pod(),
        settings: Settings { subnet: conf.settings.subnet, ..Settings::default() },
    };
    let limits = (ADD_PATIENCE, ErrorCode::TryAgain);
    let addresses = match ask_for(&conf.run_dir, Call::Allocate(call), &[], limits)? {
        Answer::Allocated(allocated) => allocated.addresses,
        other @ (Answer::Attached(_) | Answer::Done | Answer::Refused(_)) => return Err(unexpected(&other)),
    };
    let gateway = |address: Address| Address { gateway: conf.gateway.or(address.gateway), ..address };
    let addresses: Vec<_> = addresses.into_iter().map(gateway).collect();
    let routes = conf.settings.routes.as_deref().unwrap_or_default();
    let mut result = CniResult::of_addresses(&addresses, routes);
    result.dns = conf.dns.clone().unwrap_or_default();
    Ok(result.write(conf.version))
}

fn del(environment: &Environment, conf: &Conf) -> Result<(), Refusal> {
    let (key, begun) = (environment.key.clone(), now());
    let release = Release { key: key.clone(), begun: begun.clone() };
    match ask(&conf.run_dir, Call::Release(release), &[], DEL_PATIENCE) {
        Ok(Answer::Refused(refusal)) => Err(refusal),
        Ok(answer) => expect_done(&answer),
        Err(_unanswered) => {
            let del = Del { key, network: conf.network.clone(), begun };
            tombstone::leave(&conf.data_dir, &Tombstone { del, host_interface: None, ipam_only: true })
        }
    }
}

fn check(environment: &Environment, conf: &Conf) -> Result<(), Refusal> {
    let result = conf.prev_result.as_ref().map(CniResult::read).transpose()?.unwrap_or_default();
    let addresses = result.ips.iter().map(address).collect::<Result<_, Refusal>>()?;
    let call = Verify { key: environment.key.clone(), addresses };
    done(conf, Call::Verify(call), (CHECK_PATIENCE, ErrorCode::TryAgain)).map(drop)
}
