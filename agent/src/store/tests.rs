use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use tempfile::TempDir;
use weave_ipam::{Allocation, Freed};
use weave_proto::local::cni::{AttachmentKey, PodPort};
use weave_proto::peer::Features;
use weave_proto::peer::ipam::{Founded, Founding, IpamPhase, IpamState, Removal};
use weave_proto::{Nickname, PeerKey, PeerName, PeerUid};
use weave_topology::KnownPeer;

use super::*;

mod crash;

#[test]
fn a_first_start_makes_an_identity_that_every_later_start_finds() {
    let dir = TempDir::new().unwrap();

    let first = open(&dir).1;
    let second = open(&dir).1;

    assert_eq!(first.identity.uid(), PeerUid(1));
    assert_eq!(second.identity.uid(), PeerUid(2), "a start is counted, durably, before anybody sees it");
    assert_eq!(first.identity.key(), second.identity.key());
    assert_eq!(second.replaced, None);
}

#[test]
fn everything_put_is_there_after_the_next_start() {
    let dir = TempDir::new().unwrap();
    let (store, fresh) = open(&dir);
    assert_eq!(fresh.targets, None);

    store.commit(everything()).unwrap();
    drop(store);
    let loaded = open(&dir).1;

    assert_holds_everything(&loaded);
}

#[test]
fn the_twin_in_memory_takes_the_same_operations() {
    let (store, first) = Store::in_memory(&machine()).unwrap();

    store.commit(everything()).unwrap();
    let found = op::load(&store).unwrap();
    let again = op::start(store, found, &machine(), None).unwrap().1;

    assert_holds_everything(&again);
    assert_eq!((first.identity.uid(), again.identity.uid()), (PeerUid(1), PeerUid(2)));
}

#[test]
fn what_is_put_again_replaces_and_what_is_deleted_is_gone() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    store.commit(everything()).unwrap();

    let moved = Allocation { address: address(9), generation: 8, ..allocation("pod-1", 1) };
    store
        .commit(vec![
            StoreOp::Ipam(weave_ipam::StoreOp::PutAllocation(moved.clone())),
            StoreOp::Ipam(weave_ipam::StoreOp::DeleteAllocation(key("pod-2"))),
            StoreOp::Ipam(weave_ipam::StoreOp::DeleteFreed(address(3))),
            StoreOp::Ipam(weave_ipam::StoreOp::PutGeneration(8)),
            StoreOp::Targets(vec![]),
            StoreOp::Known(vec![KnownPeer { overlay: None, ..known(2) }]),
            StoreOp::ForgetKnown(vec![known(1).name]),
            StoreOp::Ipam(weave_ipam::StoreOp::DeleteAllocation(key("never-there"))),
        ])
        .unwrap();
    drop(store);
    let loaded = open(&dir).1;

    assert_eq!(loaded.ipam.allocations, [moved]);
    assert_eq!(loaded.ipam.freed, []);
    assert_eq!(loaded.ipam.generation, 8);
    assert_eq!(loaded.targets, Some(vec![]), "no targets is not the same as never having been told");
    assert_eq!(loaded.peers, [KnownPeer { overlay: None, ..known(2) }]);
}

#[test]
fn an_empty_batch_touches_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    let written = |dir: &TempDir| std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().modified().unwrap();
    let before = written(&dir);

    store.commit(Vec::new()).unwrap();

    assert_eq!(written(&dir), before);
}

#[test]
fn a_second_process_is_told_who_is_in_the_way() {
    let dir = TempDir::new().unwrap();
    let _store = open(&dir).0;

    let error = refused(&dir);

    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(dir.path().join(FILE_NAME).to_str().unwrap()), "{error}");
}

#[test]
fn a_process_that_is_about_to_end_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    let path = dir.path().to_owned();
    let next = std::thread::spawn(move || Store::open(&path, &machine()).map(drop));
    drop(store);
    next.join().unwrap().unwrap();
}

#[test]
fn nothing_is_promised_on_a_file_that_somebody_deleted_or_replaced() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    let presence = store.presence().unwrap();
    presence.check().unwrap();
    let copy = std::fs::read(dir.path().join(FILE_NAME)).unwrap();

    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    let error = store.commit(everything()).unwrap_err();
    assert!(matches!(error, StoreError::Gone { .. }), "{error}");

    std::fs::write(dir.path().join(FILE_NAME), copy).unwrap();
    let error = presence.check().unwrap_err();
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_store_of_a_later_schema_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    store.apply(vec![migrations::number(migrations::SCHEMA + 1)]).unwrap();
    drop(store);
    let before = std::fs::read(dir.path().join(FILE_NAME)).unwrap();

    let error = refused(&dir);

    assert!(error.to_string().contains("written by a later version"), "{error}");
    assert_eq!(rows(&before), rows(&std::fs::read(dir.path().join(FILE_NAME)).unwrap()));
}

#[test]
fn a_store_without_a_schema_is_damaged() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    store.apply(vec![Change { table: Table::Meta, key: "schema".to_owned(), value: None }]).unwrap();
    drop(store);

    let error = refused(&dir);

    assert!(error.to_string().contains("does not say which schema"), "{error}");
}

#[test]
fn a_value_that_cannot_be_read_is_named_and_not_left_out() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).0;
    store.commit(everything()).unwrap();
    let key = "pod-1\0eth0".to_owned();
    store.apply(vec![Change { table: Table::Allocations, key, value: Some(b"{}".to_vec()) }]).unwrap();
    drop(store);

    let error = refused(&dir).to_string();

    assert!(error.contains("allocations \"pod-1/eth0\" cannot be read"), "{error}");
    assert!(error.contains("rmpeer"), "the remedy is named: {error}");
}

#[test]
fn a_store_that_was_copied_to_another_machine_is_set_aside_for_a_new_identity() {
    let dir = TempDir::new().unwrap();
    let (store, old) = open(&dir);
    store.commit(everything()).unwrap();
    drop(store);

    let (store, new) = Store::open(dir.path(), &Machine::named("another")).unwrap();
    assert_eq!(new.replaced, Some(old.identity.name()));
    assert_ne!(new.identity.key(), old.identity.key());
    assert_eq!(new.identity.uid(), PeerUid(1));
    assert_eq!((new.ipam.allocations, new.peers, new.targets), (vec![], vec![], None));
    drop(store);

    let mut aside = files(dir.path());
    aside.retain(|path| path.file_name().unwrap() != FILE_NAME);
    assert_eq!(aside.len(), 1, "{aside:?}");
    std::fs::rename(&aside[0], dir.path().join(FILE_NAME)).unwrap();
    assert_holds_everything(&open(&dir).1);
}

#[test]
fn a_peer_that_its_own_store_knows_to_be_removed_is_another_peer_at_its_next_start_and_knows_what_it_knew() {
    let dir = TempDir::new().unwrap();
    let (store, old) = open(&dir);
    let removals =
        [(old.identity.name(), Removal::Decided { heir: PeerName::from_bits([2, 0, 0, 0, 0, 7]) })].into();
    store
        .commit(vec![StoreOp::Ipam(weave_ipam::StoreOp::PutState(Box::new(IpamState {
            universe: "10.32.0.0/12".parse().unwrap(),
            phase: IpamPhase::Founded(Box::new(Founded {
                founding: Founding { founders: [PeerName::from_bits([2, 0, 0, 0, 0, 7])].into(), nonce: 1 },
                ring: Vec::new(),
                removals,
            })),
        })))])
        .unwrap();
    drop(store);
    assert_eq!(Store::set_aside(dir.path()).unwrap(), None);

    let (store, new) = open(&dir);
    assert_ne!(new.identity.key(), old.identity.key());
    assert_eq!((new.identity.uid(), new.replaced), (PeerUid(1), None));
    assert!(matches!(new.ipam.state.unwrap().phase, IpamPhase::Founded(_)));
    drop(store);
    let (store, again) = open(&dir);
    drop(store);
    assert_eq!((again.identity.key(), again.identity.uid()), (new.identity.key(), PeerUid(2)));
}

#[test]
fn a_machine_whose_numbers_cannot_be_read_keeps_its_identity() {
    let dir = TempDir::new().unwrap();
    let (store, old) = open(&dir);
    drop(store);

    let (store, same) = Store::open(dir.path(), &Machine::default()).unwrap();
    drop(store);
    assert_eq!(same.identity.key(), old.identity.key());
    let moved = Store::open(dir.path(), &Machine::named("another")).unwrap().1;

    assert_eq!(moved.replaced, Some(old.identity.name()), "what was known of the machine is not forgotten");
}

#[test]
fn only_the_owner_reads_the_identity() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let data_dir = dir.path().join("lib").join("weave");
    let _store = Store::open(&data_dir, &machine()).unwrap();

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data_dir.join(FILE_NAME)), 0o600);
    assert_eq!(mode(&data_dir), 0o700);
}

#[test]
fn a_file_that_is_no_store_is_an_error_and_stays_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    let whole = whole_file(&dir);
    let no_stores: [&[u8]; 5] = [b"", b"hello", &[0; 100_000], &[0xff; 8192], &whole[..whole.len() / 3]];

    for bytes in no_stores {
        std::fs::write(&path, bytes).unwrap();
        let error = refused(&dir);

        assert!(matches!(error, StoreError::Damaged { .. }), "{} bytes: {error}", bytes.len());
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_flipped_bit_anywhere_is_either_harmless_or_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    let whole = whole_file(&dir);
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut errors = 0;

    // Every byte of the header, then a sample of all the others.
    let places = (0..64).chain((64..used).step_by(used / 300));
    for place in places {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (place % 8);
        std::fs::write(&path, &bytes).unwrap();
        match Store::open(dir.path(), &machine()) {
            Ok((_, loaded)) => assert_holds_everything(&loaded),
            Err(error) => {
                errors += 1;
                assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
                assert_eq!(std::fs::read(&path).unwrap(), bytes, "at {place}: {error}");
            }
        }
    }

    assert!(errors > 0, "some of these must have hit something");
}

#[test]
fn half_a_store_of_an_interrupted_first_start_is_made_anew() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join(format!("{FILE_NAME}.new")), [7; 5000]).unwrap();

    let loaded = open(&dir).1;

    assert_eq!(loaded.identity.uid(), PeerUid(1));
}

fn machine() -> Machine {
    Machine::named("this one")
}

fn open(dir: &TempDir) -> (Store, Loaded) {
    Store::open(dir.path(), &machine()).unwrap()
}

fn refused(dir: &TempDir) -> StoreError {
    Store::open(dir.path(), &machine()).err().expect("an error")
}

/// The bytes of a store that holds everything.
fn whole_file(dir: &TempDir) -> Vec<u8> {
    let store = open(dir).0;
    store.commit(everything()).unwrap();
    drop(store);
    std::fs::read(dir.path().join(FILE_NAME)).unwrap()
}

/// What a file holds, apart from how.
fn rows(bytes: &[u8]) -> BTreeMap<&'static str, Vec<(String, Vec<u8>)>> {
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(copy.path(), bytes).unwrap();
    let database = file::builder().open(copy.path()).unwrap();
    let tables = [Table::Meta, Table::Identity, Table::Ipam, Table::Allocations, Table::Freed];
    tables.into_iter().map(|table| (table.name(), read(&database, table).unwrap())).collect()
}

fn everything() -> Vec<StoreOp> {
    vec![
        StoreOp::Ipam(weave_ipam::StoreOp::PutState(Box::new(state()))),
        StoreOp::Ipam(weave_ipam::StoreOp::PutAllocation(allocation("pod-1", 1))),
        StoreOp::Ipam(weave_ipam::StoreOp::PutAllocation(allocation("pod-2", 2))),
        StoreOp::Ipam(weave_ipam::StoreOp::PutFreed(Freed { address: address(3), order: 6 })),
        StoreOp::Ipam(weave_ipam::StoreOp::PutGeneration(7)),
        StoreOp::Targets(vec!["10.0.0.7".parse().unwrap(), "node-2:7000".parse().unwrap()]),
        StoreOp::Known(vec![known(1), known(2)]),
    ]
}

fn assert_holds_everything(loaded: &Loaded) {
    assert_eq!(loaded.ipam.state, Some(state()));
    assert_eq!(loaded.ipam.allocations, [allocation("pod-1", 1), allocation("pod-2", 2)]);
    assert_eq!(loaded.ipam.freed, [Freed { address: address(3), order: 6 }]);
    assert_eq!(loaded.ipam.generation, 7);
    assert_eq!(loaded.targets, Some(vec!["10.0.0.7".parse().unwrap(), "node-2:7000".parse().unwrap()]));
    assert_eq!(loaded.peers, [known(1), known(2)]);
}

fn state() -> IpamState {
    IpamState { universe: "10.32.0.0/12".parse().unwrap(), phase: IpamPhase::Electing(BTreeMap::new()) }
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 32, 0, last).into()
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), interface: "eth0".to_owned() }
}

fn allocation(container: &str, last: u8) -> Allocation {
    let port = PodPort {
        host_interface: format!("vethwepl{last}"),
        mac: [2, 0, 0, 0, 0, last],
        address: address(last),
        netns: "/run/netns/a".to_owned(),
        pod: Some("default/web".to_owned()),
    };
    Allocation { key: key(container), address: address(last), port: Some(port), generation: u64::from(last) }
}

fn known(number: u8) -> KnownPeer {
    KnownPeer {
        name: PeerName::from_bits([2, 0, 0, 0, 0, number]),
        key: PeerKey([number; 32]),
        nickname: Nickname::lossy("a-host"),
        features: Features::FASTDP,
        overlay: Some(address(100 + number)),
        underlay: Some(([192, 168, 0, number], 6783).into()),
    }
}
