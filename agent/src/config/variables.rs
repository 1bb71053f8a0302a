//! The variables that Weave Net's manifests set and that this agent does not read, and those that nobody reads.
//!
//! A variable that is set and has no effect is a wish that is not fulfilled. Whoever moves a manifest over is told of
//! each by name, in the log and in `weave status`, instead of finding out from what the network does not do.

use std::collections::BTreeSet;

/// Weave Net's variables without an effect here, and what became of them; none where nobody needs to know.
const FORMER: &[(&[&str], Option<&str>)] = &[
    (
        &[
            "CHECKPOINT_DISABLE",
            "WEAVE_KUBERNETES_VERSION",
            "WEAVE_KUBERNETES_UID",
            "INIT_CONTAINER",
            "WEAVE_DEBUG",
        ],
        None,
    ),
    (&["WEAVE_EXPOSE_IP"], Some("the node's address on the bridge is taken from its own range")),
    (&["WEAVE_STATUS_ADDR"], Some("status is served on WEAVE_HTTP_ADDR, metrics on WEAVE_METRICS_ADDR")),
    (&["WEAVE_NO_BRIDGED_FASTDP"], Some("WEAVE_NO_FASTDP does without the kernel's VXLAN")),
    (&["WEAVE_PORT"], Some("give --port")),
    (&["IPTABLES_BACKEND"], Some("the agent's own rules are one nftables table")),
    (
        &["WEAVE_DOCKER_ARGS", "WEAVEEXEC_DOCKER_ARGS", "WEAVE_CONTAINER_NAME", "WEAVE_CIDR"],
        Some("there is no Docker proxy or plugin"),
    ),
    (&["WEAVE_VERSION", "WEAVE_MULTICAST"], Some("this version knows nothing of it")),
];

/// How the names of variables begin that are meant for this agent.
const OURS: [&str; 2] = ["WEAVE_", "IPALLOC_"];

/// What an operator should know of the variables that are set, a sentence each. `known` are those that are read.
pub(super) fn notes<'a>(
    set: impl IntoIterator<Item = (&'a str, &'a str)>,
    known: &BTreeSet<String>,
) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, value) in set {
        if value.is_empty() || known.contains(name) || is_link(name) {
            continue;
        }
        if name == "HAIRPIN_MODE" {
            if is_off(value) {
                notes.push(
                    "HAIRPIN_MODE=false has no effect: a pod's Service may always lead back to the pod itself"
                        .to_owned(),
                );
            }
        } else if name == "EXPECT_NPC" {
            if !is_off(value) {
                notes.push("EXPECT_NPC has no effect: this version enforces no NetworkPolicy".to_owned());
            }
        } else if let Some((_, why)) = FORMER.iter().find(|(names, _)| names.contains(&name)) {
            notes.extend(why.map(|why| format!("{name} has no effect: {why}")));
        } else if OURS.iter().any(|prefix| name.starts_with(prefix)) {
            notes.push(format!(
                "{name} is set, but nothing reads it: is it misspelt? See `weave launch --help`"
            ));
        }
    }
    notes.sort();
    notes
}

/// The kubelet tells every pod of the Services of its namespace, in variables that may begin like ours.
fn is_link(name: &str) -> bool {
    name.contains("_SERVICE_") || name.ends_with("_PORT") || name.contains("_PORT_")
}

fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "0" | "n" | "no" | "f" | "false" | "off")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(set: &[(&str, &str)]) -> Vec<String> {
        let known = ["WEAVE_MTU", "IPALLOC_RANGE"].map(str::to_owned).into();
        notes(set.iter().copied(), &known)
    }

    #[test]
    fn what_is_read_or_empty_or_nobodys_concern_is_not_told() {
        assert!(
            told(&[("WEAVE_MTU", "1400"), ("IPALLOC_RANGE", ""), ("PATH", "/bin"), ("WEAVE_FOO", "")])
                .is_empty()
        );
        assert!(
            told(&[("CHECKPOINT_DISABLE", "1"), ("WEAVE_KUBERNETES_UID", "x"), ("HAIRPIN_MODE", "true")])
                .is_empty()
        );
        assert!(told(&[("EXPECT_NPC", "0")]).is_empty());
    }

    #[test]
    fn a_variable_without_an_effect_is_named_with_the_reason() {
        assert!(told(&[("HAIRPIN_MODE", "false")])[0].contains("HAIRPIN_MODE=false"));
        assert!(told(&[("EXPECT_NPC", "1")])[0].contains("NetworkPolicy"));
        assert!(told(&[("WEAVE_EXPOSE_IP", "10.32.0.1")])[0].starts_with("WEAVE_EXPOSE_IP has no effect"));
    }

    #[test]
    fn an_unknown_variable_of_ours_is_named_and_a_link_to_a_service_is_not() {
        assert!(told(&[("WEAVE_MTUU", "1400")])[0].contains("WEAVE_MTUU"));
        assert!(told(&[("IPALLOC_RNAGE", "x")])[0].contains("IPALLOC_RNAGE"));
        let links = [
            ("WEAVE_NET_SERVICE_HOST", "10.96.0.9"),
            ("WEAVE_NET_PORT", "tcp://x"),
            ("WEAVE_NET_PORT_80_TCP", "x"),
        ];
        assert!(told(&links).is_empty());
    }
}
