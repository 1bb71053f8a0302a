use super::*;

fn read(text: &str) -> Result<Request, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn requests_look_as_documented() {
    let golden = [
        (Request::Status {}, r#"{"command":"status"}"#),
        (
            Request::Connect { peers: vec!["10.0.0.7".to_owned()], replace: false },
            r#"{"command":"connect","peers":["10.0.0.7"],"replace":false}"#,
        ),
        (Request::Forget { peers: vec!["a:1".to_owned()] }, r#"{"command":"forget","peers":["a:1"]}"#),
        (
            Request::RmPeer { peer: "node7".to_owned(), force: true },
            r#"{"command":"rmpeer","peer":"node7","force":true}"#,
        ),
        (Request::Shutdown {}, r#"{"command":"shutdown"}"#),
    ];
    for (request, text) in golden {
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(read(text), Ok(request));
    }
}

#[test]
fn answers_look_as_documented() {
    let done = Answer::Done(Done { message: "ok".to_owned() });
    assert_eq!(serde_json::to_string(&done).unwrap(), r#"{"done":{"message":"ok"}}"#);
    let failed = Answer::Failed(Failure::new(FailureCode::NotFound, "no peer x"));
    let text = r#"{"failed":{"code":"not-found","message":"no peer x"}}"#;
    assert_eq!(serde_json::to_string(&failed).unwrap(), text);
    assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), failed);
}

#[test]
fn a_misspelt_field_is_refused_and_named() {
    let error = read(r#"{"command":"connect","peers":[],"replcae":true}"#).unwrap_err();
    assert!(error.contains("replcae"), "{error}");
}

#[test]
fn an_unknown_command_is_refused_and_named() {
    let error = read(r#"{"command":"reboot"}"#).unwrap_err();
    assert!(error.contains("reboot") && error.contains("rmpeer"), "{error}");
}

#[test]
fn a_failure_code_of_a_later_version_can_be_read() {
    let failure: Failure = serde_json::from_str(r#"{"code":"tired","message":"later"}"#).unwrap();
    assert_eq!(failure.code, FailureCode::Other);
}
