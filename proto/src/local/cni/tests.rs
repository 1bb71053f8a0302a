use super::*;

fn key(container: &str, interface: &str) -> AttachmentKey {
    AttachmentKey { container: container.to_owned(), interface: interface.to_owned() }
}

#[test]
fn names_of_an_attachment_never_change() {
    // Recorded: a change would orphan every link that an older version made.
    let key = key("0123456789abcdef", "eth0");
    assert_eq!(key.host_interface(0), "vethwepl5ca5360");
    assert_eq!(mac_to_text(key.pod_mac()), "8e:df:6c:67:cf:3a");
    assert_eq!(mac_to_text(key.host_mac()), "7a:df:a5:4d:9c:20");
}

#[test]
fn host_interface_names_fit_the_kernel_and_differ_by_attempt() {
    let names: std::collections::BTreeSet<_> =
        (0..=255).map(|n| key("c", "eth0").host_interface(n)).collect();
    assert_eq!(names.len(), 256);
    assert!(names.iter().all(|name| name.len() == 15));
}

#[test]
fn moving_a_letter_between_container_and_interface_changes_every_name() {
    assert_ne!(key("ab", "c").host_interface(0), key("a", "bc").host_interface(0));
    assert_ne!(Tombstone::file_name(&key("a-b", "c")), Tombstone::file_name(&key("a", "b-c")));
}

#[test]
fn macs_are_local_and_unicast() {
    for number in 0..200 {
        let key = key(&format!("container{number}"), "eth0");
        for mac in [key.pod_mac(), key.host_mac()] {
            assert_eq!(mac[0] & 0b11, 0b10, "{}", mac_to_text(mac));
        }
        assert_ne!(key.pod_mac(), key.host_mac());
    }
}

#[test]
fn a_tombstone_of_a_very_long_container_id_still_has_a_file_name() {
    assert!(Tombstone::file_name(&key(&"x".repeat(4000), "eth0")).len() < 255);
}

#[test]
fn requests_are_one_flat_object() {
    let begun = Moment { boot: "b".to_owned(), nanoseconds: 7 };
    let call = Call::Del(Del { key: key("c", "eth0"), network: "weave".to_owned(), begun });
    let text = serde_json::to_string(&Request { protocol: PROTOCOL, call: call.clone() }).unwrap();
    assert_eq!(
        text,
        r#"{"protocol":1,"verb":"del","key":{"container":"c","interface":"eth0"},"network":"weave","begun":{"boot":"b","nanoseconds":7}}"#
    );
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap().call, call);
}

#[test]
fn keys_of_a_newer_shim_are_ignored() {
    let text = r#"{"protocol":1,"verb":"status","colour":"blue"}"#;
    assert_eq!(serde_json::from_str::<Request>(text).unwrap().call, Call::Status);
}

#[test]
fn every_error_code_survives_the_way_there_and_back() {
    for number in 0..1000 {
        assert_eq!(u32::from(ErrorCode::from(number)), number);
    }
}

#[test]
fn a_moment_of_another_boot_is_never_later() {
    let moment = |boot: &str, nanoseconds| Moment { boot: boot.to_owned(), nanoseconds };
    assert!(moment("a", 2).is_after(&moment("a", 1)));
    assert!(!moment("a", 1).is_after(&moment("a", 1)));
    assert!(!moment("b", 2).is_after(&moment("a", 1)));
}

#[test]
fn mac_text_takes_six_bytes_and_nothing_else() {
    assert_eq!(mac_from_text("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
    for wrong in ["", "02:00:00:00:00", "02:00:00:00:00:0a:0b", "2:0:0:0:0:a", "zz:00:00:00:00:00"] {
        assert_eq!(mac_from_text(wrong), None, "{wrong:?}");
    }
}
