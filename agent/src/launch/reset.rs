//! Removes what agents left on this machine: kernel objects and files.

use std::fs;
use std::io;

use crate::cli::{Removal, ResetPaths, Trace};
use crate::former::{self, Places};
use crate::kube;
use crate::net;
use crate::store;

/// Folders and files in the data directory that are the agent's.
const DATA: [&str; 1] = ["cni"];

/// Files in the data directory that are the agent's, beside the store.
const FILES: [&str; 1] = [kube::SECRET_COPY];

/// Removes every trace, goes on after failures, and says what became of each.
pub(super) fn reset(paths: &ResetPaths) -> Vec<Trace> {
    let mut traces = kernel();
    for file in store::files(&paths.data_dir) {
        traces.push(Trace::of_file(format!("store {}", file.display()), fs::remove_file(&file)));
    }
    for name in FILES {
        let path = paths.data_dir.join(name);
        traces.push(Trace::of_file(format!("file {}", path.display()), fs::remove_file(&path)));
    }
    for name in DATA {
        let path = paths.data_dir.join(name);
        traces.push(Trace::of_file(format!("folder {}", path.display()), fs::remove_dir_all(&path)));
    }
    traces
}

/// Finds what Weave Net left, and removes it if told so.
pub(super) fn weave_net(places: &Places, remove: bool) -> io::Result<Vec<Trace>> {
    let found = former::find(places)?;
    let shown = |(it, outcome): (former::Leftover, io::Result<Removal>)| Trace {
        what: it.to_string(),
        outcome: outcome.map_err(|error| error.to_string()),
    };
    if !remove {
        return Ok(found.into_iter().map(|it| shown((it, Ok(Removal::Kept)))).collect());
    }
    let done = former::remove(found).into_iter();
    Ok(done.map(|(it, outcome)| shown((it, outcome.map(|()| Removal::Removed)))).collect())
}

fn kernel() -> Vec<Trace> {
    let failed =
        |error: net::NetError| Trace { what: "kernel state".to_owned(), outcome: Err(error.to_string()) };
    match net::reset::reset() {
        Ok(report) => {
            let removed =
                report.removed.into_iter().map(|what| Trace { what, outcome: Ok(Removal::Removed) });
            removed.chain(report.errors.into_iter().map(failed)).collect()
        }
        Err(error) => vec![failed(error)],
    }
}
