//! Runs the fuzz targets over their corpus and over mutations of it, the same ones at each run.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../fuzz/src/targets.rs"]
#[expect(clippy::expect_used, reason = "a fuzz target fails by panicking")]
#[expect(unreachable_pub, reason = "public for the fuzz crate, which this file is part of")]
mod targets;

use std::path::Path;

/// Mutations made of each input.
const MUTATIONS: u32 = 3000;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 15] = [
    ("frames", targets::frames),
    ("hello", targets::hello),
    ("refusal", targets::refusal),
    ("topology", targets::topology),
    ("digest", targets::digest),
    ("want", targets::want),
    ("ipam", targets::ipam),
    ("directed", targets::directed),
    ("warning", targets::warning),
    ("terms", targets::terms),
    ("offer", targets::offer),
    ("routed", targets::routed),
    ("handshake", targets::handshake),
    ("control_request", targets::control_request),
    ("cni_request", targets::cni_request),
];

#[test]
fn every_target_survives_its_corpus_and_mutations_of_it() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        for input in &corpus {
            target(input);
            for _ in 0..MUTATIONS {
                let other = &corpus[chance.below(corpus.len())];
                target(&mutated(input, other, &mut chance));
            }
        }
    }
}

#[test]
fn every_target_is_one_that_the_fuzzer_knows_too() {
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let known = manifest.matches("[[bin]]").count();

    assert_eq!(known, TARGETS.len());
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let source = std::fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("targets::{name}(")), "{name}");
    }
}

#[test]
fn seeds_of_messages_are_understood() {
    // A seed that no longer decodes would leave its target knocking at a closed door.
    use weave_proto::codec::{Kind, decode};
    use weave_proto::peer::WireVersion;
    for kind in Kind::ALL {
        let understood =
            corpus(kind.name()).iter().filter(|seed| decode(kind, WireVersion(1), seed).is_ok()).count();
        assert!(understood > 0, "{}", kind.name());
    }
    for seed in corpus("control_request") {
        serde_json::from_slice::<weave_proto::local::control::Request>(&seed).unwrap();
    }
    for seed in corpus("cni_request") {
        serde_json::from_slice::<weave_proto::local::cni::Request>(&seed).unwrap();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The inputs of a target, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = root().join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A few of what a fuzzer does: flip, overwrite with telling values, cut, repeat, join with another input.
fn mutated(input: &[u8], other: &[u8], chance: &mut Chance) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff];
    let mut bytes = input.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len().max(1));
        match chance.below(6) {
            _ if bytes.is_empty() => bytes.push(TELLING[chance.below(8)]),
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = TELLING[chance.below(8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, TELLING[chance.below(8)]),
            4 => bytes
                .splice(at.., other[chance.below(other.len().max(1)).min(other.len())..].iter().copied())
                .for_each(drop),
            _ => {
                let again = bytes[at..].to_vec();
                bytes.extend_from_slice(&again);
            }
        }
    }
    bytes
}

/// Numbers that look random and are the same at each run (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}
