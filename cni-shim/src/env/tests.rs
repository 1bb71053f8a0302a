use super::*;

fn parse(variables: &[(&str, &str)]) -> Result<Environment, Refusal> {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Environment::parse(&variables)
}

#[test]
fn a_pod_is_known_by_both_its_names_or_not_at_all() {
    let with = |args| {
        let all = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
        ];
        parse(&all).unwrap().pod()
    };
    assert_eq!(
        with("K8S_POD_NAME=till;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop"),
        Some("shop/till".to_owned())
    );
    assert_eq!(with("K8S_POD_NAME=till;K8S_POD_NAMESPACE=;X=a=b;;"), None);
    assert_eq!(with(""), None);
}

#[test]
fn empty_folders_of_the_path_are_left_out() {
    let environment = parse(&[("CNI_COMMAND", "GC"), ("CNI_PATH", ":/a::/b:")]).unwrap();
    assert_eq!(environment.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
}

#[test]
fn cni_names() {
    for good in ["a", "0", "a_b.c-d", "0123456789abcdef"] {
        assert!(is_cni_name(good), "{good}");
    }
    for bad in ["", "_a", "-a", ".a", "a b", "a/b", "ä"] {
        assert!(!is_cni_name(bad), "{bad}");
    }
}

#[test]
fn interface_names_of_fifteen_bytes_are_the_longest() {
    let with = |name| parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", name)]);
    assert!(with("fifteen_letters").is_ok());
    assert_eq!(with("sixteen_letters_").unwrap_err().code, ErrorCode::InvalidEnvironment);
}
