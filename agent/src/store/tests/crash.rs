//! A process that commits and says so, killed at any moment: what it said must be there.
//!
//! The child is this test binary itself, told by an environment variable to be the child.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// Names the data directory to the child.
const CHILD: &str = "WEAVE_TEST_STORE_CHILD";
/// Has the child put more and more.
const GROW: &str = "WEAVE_TEST_STORE_GROW";
/// How often a child is killed.
const ROUNDS: u64 = 25;
/// How many answers are looked at in a trace.
const ANSWERS: usize = 20;

#[test]
fn whatever_was_answered_survives_a_kill_at_any_moment() {
    let dir = TempDir::new().unwrap();
    let mut chance: u64 = 1;
    let mut answered = 0;

    for round in 0..ROUNDS {
        let mut child = start_child(&dir);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let enough = (chance >> 40) % 40;
        // The kill comes at once after some line, while the child is busy with the next.
        let mut said = None;
        for (count, line) in lines.enumerate() {
            said = line
                .unwrap()
                .strip_prefix("committed ")
                .map(|number| number.parse::<u64>().unwrap())
                .or(said);
            if count as u64 == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        answered = said.unwrap_or(answered).max(answered);

        let (store, loaded) = open(&dir);
        let found = loaded.ipam.generation;
        assert!(found >= answered, "round {round}: {answered} was answered, {found} is there");
        assert!(found <= answered + 1, "round {round}: {found} is there, only {answered} was answered");
        assert_batches_are_whole(&loaded, found);
        drop(store);
    }

    assert!(answered > ROUNDS, "the children got to commit something: {answered}");
}

#[test]
fn a_kill_during_the_first_start_leaves_a_store_or_none() {
    for delay in 0..20 {
        let dir = TempDir::new().unwrap();
        let mut child = start_child(&dir);
        // No sleep: let the child get some way by waiting for something that takes a while.
        for _ in 0..delay * 20 {
            let _ = child.try_wait().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();

        open(&dir);
    }
}

#[test]
fn every_answer_has_one_sync_before_it() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    let trace = dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=fdatasync,fsync,write", "-o"]).arg(&trace);
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is needed in CI");
        println!("skipped: there is no strace");
        return;
    }
    let mut child = as_child(strace.arg(std::env::current_exe().unwrap()), &dir).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map(Result::unwrap).filter(|line| line.starts_with("committed")).take(ANSWERS).for_each(drop);
    // The pipe is closed: the child's next word ends it.
    child.wait().unwrap();

    let trace = std::fs::read_to_string(trace).unwrap();
    let said = trace.lines().filter_map(|line| {
        let is = |call: &str| line.contains(&format!(" {call}("));
        if is("write") && line.contains("\"committed ") {
            Some(true)
        } else if is("fdatasync") || is("fsync") {
            Some(false)
        } else {
            None
        }
    });
    let said: Vec<bool> = said.collect();
    let first = said.iter().position(|answer| *answer).unwrap();
    let syncs: Vec<usize> =
        said[first + 1..].split(|answer| *answer).map(<[bool]>::len).take(ANSWERS - 1).collect();
    assert_eq!(syncs, [1; ANSWERS - 1], "fdatasync calls before each answer");
}

#[test]
fn a_full_disk_is_an_error_and_harms_nothing_that_was_answered() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    // A limit on the size of files stands for the disk. The shell has the signal ignored that comes with it.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap());
    let output = as_child(&mut limited, &dir).env(GROW, "1").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();

    let answered = said.lines().filter_map(|line| line.strip_prefix("committed ")).next_back();
    let answered: u64 = answered.expect("it had room at the beginning").parse().unwrap();
    assert!(said.contains("failed: cannot write to the store"), "{said}");
    assert!(said.contains("and again: cannot write to the store"), "{said}");
    let found = open(&dir).1.ipam.generation;
    assert!(found == answered || found == answered + 1, "{answered} was answered, {found} is there");
}

#[test]
#[ignore = "a measurement: run it alone, with --nocapture, in a release build"]
fn measure_the_latency_of_a_commit() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dir = tempfile::tempdir_in(target).unwrap();
    let store = open(&dir).0;
    let mut taken: Vec<_> = (1..=1000)
        .map(|generation| {
            let ops = batch(generation).into_iter().take(2).collect();
            let began = std::time::Instant::now();
            store.commit(ops).unwrap();
            began.elapsed()
        })
        .collect();
    taken.sort_unstable();
    let size = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len();
    println!("commit p50 {:?}, p99 {:?}, max {:?}; file {size} bytes", taken[500], taken[990], taken[999]);
}

#[test]
#[ignore = "the other end of the two tests above"]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let (store, loaded) = Store::open(Path::new(&dir), &machine()).unwrap();
    let grows = std::env::var_os(GROW).is_some();
    for generation in loaded.ipam.generation + 1.. {
        let mut ops = batch(generation);
        if grows {
            ops.extend((0..100).map(|number| {
                let container = format!("pod-{generation}-{number}");
                StoreOp::Ipam(weave_ipam::StoreOp::PutAllocation(allocation(&container, number)))
            }));
        }
        if let Err(error) = store.commit(ops) {
            println!("failed: {error}");
            println!("and again: {}", store.commit(batch(generation)).unwrap_err());
            return;
        }
        println!("committed {generation}");
    }
}

/// Each batch moves one pod and changes a few more things with it, always all of them.
fn batch(generation: u64) -> Vec<StoreOp> {
    let last = u8::try_from(generation % 200).unwrap();
    let moved = Allocation { generation, ..allocation("pod-1", last) };
    let mut ops = vec![
        StoreOp::Ipam(weave_ipam::StoreOp::PutGeneration(generation)),
        StoreOp::Ipam(weave_ipam::StoreOp::PutAllocation(moved)),
        StoreOp::Ipam(weave_ipam::StoreOp::PutFreed(Freed { address: address(last), order: generation })),
    ];
    if generation.is_multiple_of(3) {
        ops.push(StoreOp::Known((1..100).map(known).collect()));
    }
    ops
}

fn assert_batches_are_whole(loaded: &Loaded, generation: u64) {
    if generation == 0 {
        return;
    }
    let moved = loaded.ipam.allocations.iter().find(|found| found.key == key("pod-1")).unwrap();
    assert_eq!(moved.generation, generation);
    assert_eq!(loaded.ipam.freed.iter().map(|freed| freed.order).max(), Some(generation));
}

fn start_child(dir: &TempDir) -> Child {
    as_child(&mut Command::new(std::env::current_exe().unwrap()), dir).spawn().unwrap()
}

fn as_child<'a>(command: &'a mut Command, dir: &TempDir) -> &'a mut Command {
    command
        .args(["store::tests::crash::child", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
}
