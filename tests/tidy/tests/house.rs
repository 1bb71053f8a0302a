//! The house rules of CONTRIBUTING.md that only a walk through the tree can check.

use std::collections::BTreeMap;
use std::process::Command;

use weave_tidy::{root, sources};

/// Lines a file may have, tests of its own apart: it fits in one sitting.
const MAX_FILE_LINES: usize = 600;

/// What each pure crate may depend on beside the standard library. Purity is visible in the manifest.
const THINKERS: &[(&str, &[&str])] = &[
    ("weave-proto", &["bincode", "ipnetwork", "serde", "serde_json", "thiserror"]),
    ("weave-topology", &["rand", "serde", "thiserror", "tracing", "weave-proto"]),
    ("weave-ipam", &["rand", "serde", "thiserror", "tracing", "weave-proto"]),
    ("weave-overlay", &["serde", "weave-proto"]),
    ("weave-sleeve", &["aws-lc-rs", "thiserror", "weave-proto", "zeroize"]),
    (
        "weave-router",
        &[
            "rand",
            "serde",
            "thiserror",
            "tracing",
            "weave-ipam",
            "weave-overlay",
            "weave-proto",
            "weave-topology",
        ],
    ),
    ("weave-cni", &["rustix", "serde", "serde_json", "weave-proto"]),
];

/// In the agent: a room, and the words that must not occur in it.
const FOREIGN_WORDS: &[(&str, &[&str])] = &[
    ("agent/src/peer", &["weave_router", "weave_ipam", "crate::net", "crate::cni", "crate::store"]),
    (
        "agent/src/net",
        &["weave_router", "weave_ipam", "weave_topology", "crate::brain", "crate::peer", "crate::store"],
    ),
    ("agent/src/firewall", &["weave_router", "weave_ipam", "weave_topology", "crate::brain", "crate::peer"]),
    ("agent/src/cni", &["weave_router", "crate::brain", "crate::firewall", "crate::peer", "crate::store"]),
    ("agent/src/http", &["weave_router", "crate::brain", "crate::net", "crate::store"]),
    (
        "agent/src/kube",
        &["weave_router", "crate::net", "crate::firewall", "crate::store", "crate::dataplane"],
    ),
    ("agent/src/store", &["crate::brain", "crate::net", "crate::peer"]),
];

#[test]
fn a_pure_crate_depends_on_nothing_that_could_do_something() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let by_name: BTreeMap<_, _> = packages.iter().filter_map(|p| Some((p["name"].as_str()?, p))).collect();
    for (name, allowed) in THINKERS {
        let package = by_name.get(name).unwrap_or_else(|| panic!("no package {name}"));
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let needed = dependency["name"].as_str().expect("a name");
            let normal = dependency["kind"].is_null();
            assert!(!normal || allowed.contains(&needed), "{name} must not depend on {needed}");
        }
    }
}

#[test]
fn no_room_of_the_agent_knows_a_room_it_must_not_know() {
    for (room, words) in FOREIGN_WORDS {
        for source in sources(room).iter().filter(|source| !source.is_test()) {
            for word in *words {
                assert!(!source.text.contains(word), "{} must not know {word}", source.path);
            }
        }
    }
}

#[test]
fn a_file_fits_in_one_sitting() {
    for folder in ["proto", "agent", "cni-shim", "tests"] {
        for source in sources(folder) {
            let lines = source.production_lines();
            assert!(lines <= MAX_FILE_LINES, "{} has {lines} lines, {MAX_FILE_LINES} allowed", source.path);
        }
    }
}

#[test]
fn bytes_of_the_wire_are_parsed_in_proto_alone() {
    for source in sources("agent").iter().filter(|source| !source.path.starts_with("agent/src/store")) {
        assert!(!source.text.contains("bincode::"), "{} must leave encoding to proto", source.path);
    }
}

#[test]
fn no_test_sleeps() {
    // A pure test moves its clock; a test against a real kernel polls a condition up to a deadline, and the one
    // place that may wait between two polls is the lab's `eventually`.
    let sleeps = ["thread::sleep(", "time::sleep("];
    for folder in ["proto", "agent/crates", "tests/sim"] {
        for source in sources(folder) {
            assert!(!sleeps.iter().any(|sleep| source.text.contains(sleep)), "{} sleeps", source.path);
        }
    }
}

#[test]
fn every_crate_says_what_it_is_for() {
    let crates = ["proto", "agent", "agent/crates/ipam", "agent/crates/overlay", "agent/crates/router"];
    let others = ["agent/crates/sleeve", "agent/crates/topology", "tests/netns", "tests/sim"];
    for folder in crates.into_iter().chain(others) {
        let path = root().join(folder).join("src/lib.rs");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let prose = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!(prose >= 8, "{} introduces itself in {prose} lines", path.display());
    }
}
