use super::*;

#[test]
fn a_file_holds_one_secret_a_line_the_first_to_sign_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "# since march\nnew secret \n\n  old secret\nnew secret\n").unwrap();

    let secrets = Secrets::from_file(&path).unwrap();

    assert_eq!(secrets.texts, ["new secret", "old secret"]);
    assert!(!secrets.is_public());
}

#[test]
fn a_file_without_a_secret_is_an_error_that_names_it_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");

    let missing = Secrets::from_file(&path).unwrap_err().to_string();
    assert!(missing.contains(path.to_str().unwrap()), "{missing}");

    std::fs::write(&path, "# nothing yet\n").unwrap();
    let empty = Secrets::from_file(&path).unwrap_err().to_string();
    assert!(empty.contains(path.to_str().unwrap()) && empty.contains("openssl rand"), "{empty}");
}

#[test]
fn what_cannot_be_a_list_of_secrets_is_refused() {
    let long = Secrets::from_lines(&"x".repeat(MAX_SECRET_LEN + 1), "a test").unwrap_err();
    assert!(long.to_string().contains("line 1 of a test"), "{long}");

    let many: String = (0..=MAX_SECRETS).map(|number| format!("secret {number}\n")).collect();
    let many = Secrets::from_lines(&many, "a test").unwrap_err();
    assert!(many.to_string().contains("remove those no longer in use"), "{many}");
}

#[test]
fn guessable_secrets_are_warned_of_and_random_ones_are_not() {
    for weak in
        ["weave", "secret123", "hunter2", "correct horse", "Passwort2024!", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    {
        let warnings = Secrets::from_lines(weak, "a test").unwrap().warnings();
        assert_eq!(warnings.len(), 1, "{weak}");
        assert!(!warnings[0].contains(weak) || weak == "weave", "a warning does not tell the secret");
    }
    for strong in
        ["Rr3pn1l0zH9lJv2gMrhT6w==", "f3c1a0b9d8e7463524150f1e2d3c4b5a", "tr0ubador staple quilt 91 lamp"]
    {
        let warnings = Secrets::from_lines(strong, "a test").unwrap().warnings();
        assert_eq!(warnings, Vec::<String>::new(), "{strong}");
    }
}

#[test]
fn the_public_secret_says_so() {
    let warnings = Secrets::public().warnings();

    assert!(Secrets::public().is_public());
    assert!(warnings[0].contains("anyone who reaches this port can join"), "{warnings:?}");
}

#[test]
fn a_secret_is_never_printed() {
    let secrets = Secrets::from_lines("sesame", "a test").unwrap();

    assert_eq!(format!("{secrets:?}"), "1 secret(s) of a test");
}

#[test]
fn stretching_gives_what_it_always_gave() {
    // A peer that stretches in another way is cut off from all others: this value may never change.
    let seeds = Secrets::from_lines("sesame", "a test").unwrap().stretch().unwrap();

    let hex: String = seeds[0].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "825b51b513d195c9dc75209f3eac55e61c11fcd9a558810b44896dfba3c6501e");
}
