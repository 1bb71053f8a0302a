//! The note that is left when the agent cannot be told of a DEL.
//!
//! The runtime is told that the pod is gone, so the note must survive whatever happens next: it is written beside
//! its place, flushed, renamed and the folder flushed, before DEL answers. If that cannot be done, DEL fails, and
//! the runtime comes back.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use weave_proto::local::cni::{ErrorCode, Refusal, TOMBSTONES, Tombstone};

/// Leaves `tombstone` in `data_dir`.
///
/// # Errors
/// Code 11 if it cannot be made durable.
pub(crate) fn leave(data_dir: &Path, tombstone: &Tombstone) -> Result<(), Refusal> {
    let dir = data_dir.join(TOMBSTONES);
    write(&dir, tombstone).map_err(|error| {
        let msg = format!("cannot leave the note of this DEL in {}: {error}", dir.display());
        Refusal::new(ErrorCode::TryAgain, msg).with_details("the weave agent does not answer either")
    })
}

fn write(dir: &Path, tombstone: &Tombstone) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = Tombstone::file_name(&tombstone.del.key);
    // The dot keeps the agent from reading it too early; the number keeps two of us apart.
    let beside = dir.join(format!(".{name}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut document = serde_json::to_vec(tombstone)?;
    document.push(b'\n');
    let written = file.write_all(&document).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| std::fs::rename(&beside, dir.join(name)));
    if placed.is_err() {
        let _already_failing = std::fs::remove_file(&beside);
    }
    placed.and_then(|()| File::open(dir)?.sync_all())
}
