use std::net::IpAddr;

use super::*;

fn pod(port: &str) -> PodPort {
    PodPort {
        host_interface: port.to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        address: IpAddr::from([10, 32, 0, 2]),
        netns: String::new(),
        pod: None,
    }
}

fn names(pods: &Pods) -> Vec<String> {
    pods.current().into_iter().map(|pod| pod.host_interface).collect()
}

fn now() -> Instant {
    Instant::now()
}

#[test]
fn an_attached_pod_stays_although_no_state_lists_it_yet() {
    let mut pods = Pods::default();
    pods.attach(&pod("vethwea"));
    pods.list(&[pod("vethweb")], now());
    assert_eq!(names(&pods), ["vethwea", "vethweb"]);
}

#[test]
fn a_pod_that_a_state_listed_goes_when_the_next_state_does_not() {
    let mut pods = Pods::default();
    pods.attach(&pod("vethwea"));
    pods.list(&[pod("vethwea")], now());
    assert_eq!(names(&pods), ["vethwea"]);
    pods.list(&[], now());
    assert!(names(&pods).is_empty());
}

#[test]
fn a_detached_pod_stays_away_although_the_newest_state_still_lists_it() {
    let mut pods = Pods::default();
    pods.list(&[pod("vethwea")], now());
    pods.detach("vethwea", now());
    pods.list(&[pod("vethwea")], now());
    assert!(names(&pods).is_empty());
    pods.list(&[], now());
    pods.list(&[pod("vethwea")], now());
    assert_eq!(names(&pods), ["vethwea"]);
}

#[test]
fn a_pod_attached_again_after_it_was_detached_is_there() {
    let mut pods = Pods::default();
    pods.list(&[pod("vethwea")], now());
    pods.detach("vethwea", now());
    pods.attach(&pod("vethwea"));
    assert_eq!(names(&pods), ["vethwea"]);
}

#[test]
fn a_pod_detached_before_any_state_listed_it_stays_away_from_the_one_that_is_on_its_way() {
    let mut pods = Pods::default();
    assert!(pods.detach("vethwea", now()).is_none());
    pods.list(&[pod("vethwea")], now());
    assert!(names(&pods).is_empty());
    pods.attach(&pod("vethwea"));
    assert_eq!(names(&pods), ["vethwea"]);
}

#[test]
fn pods_that_are_gone_are_not_remembered_for_ever() {
    let (mut pods, start) = (Pods::default(), now());
    for number in 0..100 {
        pods.detach(&format!("vethwe{number}"), start + LAG / 10 * number);
    }
    assert!(pods.withdrawn.len() <= 10, "{}", pods.withdrawn.len());
}
