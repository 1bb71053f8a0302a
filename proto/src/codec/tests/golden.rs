//! The bytes of every message, pinned by files.
//!
//! A peer of the version before must read what this one writes. So a file in `proto/golden/` is never rewritten
//! once it is there: a message that changes gets a new wire version and new files beside the old ones.

use std::path::{Path, PathBuf};

use super::samples::pinned;
use super::*;

#[test]
fn every_message_has_the_bytes_it_always_had() {
    for (name, message) in pinned() {
        let path = golden(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}: make it with `cargo test -p weave-proto -- --ignored golden`",
                path.display()
            )
        });

        assert_eq!(hex(&encode(&message, V1).unwrap()), hex(&bytes), "{name} is written as it always was");
        let mut framer = speaking();
        framer.feed(&bytes);
        assert_eq!(framer.poll(), Ok(Some(message)), "{name} is read as it always was");
        assert_eq!(framer.buffered(), 0);
    }
}

#[test]
fn every_kind_is_pinned_in_every_version_spoken() {
    for version in SPOKEN.0.0..=SPOKEN.1.0 {
        for kind in Kind::ALL {
            let path = root().join(format!("golden/v{version}/{}.bin", kind.name()));
            assert!(path.exists(), "{} is missing", path.display());
        }
    }
}

#[test]
fn the_description_of_the_protocol_shows_the_bytes_as_they_are() {
    let description = std::fs::read_to_string(root().join("../docs/wire.md")).unwrap();
    // The bytes are on the left of a line, two blanks before what they mean.
    let bytes = description.lines().filter_map(|line| line.split("  ").next());
    let shown: String = bytes.flat_map(str::split_whitespace).collect();

    for (name, message) in pinned() {
        if ["hello", "refusal", "digest", "want", "directed", "terms", "offer", "routed", "handshake"]
            .contains(&name)
        {
            let frame = hex(&encode(&message, V1).unwrap());
            assert!(shown.contains(&frame), "docs/wire.md does not show {name}: {frame}");
        }
    }
}

#[test]
#[ignore = "writes files that are missing; never changes one"]
fn golden_files_that_are_missing_are_written() {
    for (name, message) in pinned() {
        let frame = encode(&message, V1).unwrap();
        let kind = Kind::of(&message).name();
        write_if_missing(&golden(name), &frame);
        // The first byte of a stream's seed says in pieces of which size it arrives.
        write_if_missing(&root().join(format!("fuzz/corpus/frames/{name}")), &[&[7], &frame[..]].concat());
        write_if_missing(&root().join(format!("fuzz/corpus/{kind}/{name}")), &frame[HEADER_LEN..]);
    }
}

fn write_if_missing(path: &Path, bytes: &[u8]) {
    if !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn golden(name: &str) -> PathBuf {
    root().join(format!("golden/v1/{name}.bin"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
