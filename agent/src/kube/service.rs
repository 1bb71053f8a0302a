//! The addresses of Services, which the range to share out must not hold: a pod with such an address would be hidden
//! by the Service, or a Service by the pod.

use std::net::IpAddr;

use weave_proto::Cidr;

use super::objects::{Service, ServiceCidr};

/// Where the range and the Services meet, in words; none if they do not.
pub(super) fn overlap(range: Cidr, api_server: Option<&Service>, cidrs: &[ServiceCidr]) -> Option<String> {
    let remedy = "choose another IPALLOC_RANGE, apart from the API server's --service-cluster-ip-range";
    let texts = cidrs.iter().flat_map(|found| &found.spec.cidrs);
    for text in texts {
        let Ok(services) = text.parse::<Cidr>() else { continue };
        if services.overlaps(range) {
            return Some(format!(
                "the range {range} overlaps with the addresses of Services, {services}: {remedy}"
            ));
        }
    }
    let spec = &api_server?.spec;
    let addresses = spec.cluster_ips.iter().chain(&spec.cluster_ip);
    let inside = addresses.filter_map(|text| text.parse::<IpAddr>().ok()).find(|it| range.contains(*it))?;
    Some(format!("the range {range} holds {inside}, the address of the Service `kubernetes`: {remedy}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(address: &str) -> Service {
        serde_json::from_value(json!({ "spec": { "clusterIP": address, "clusterIPs": [address] } })).unwrap()
    }

    fn cidr(texts: &[&str]) -> ServiceCidr {
        serde_json::from_value(json!({ "spec": { "cidrs": texts } })).unwrap()
    }

    #[test]
    fn a_range_apart_from_the_services_is_fine() {
        let range = "10.32.0.0/12".parse().unwrap();
        assert_eq!(
            overlap(range, Some(&service("10.96.0.1")), &[cidr(&["10.96.0.0/16", "fd00::/108"])]),
            None
        );
        assert_eq!(overlap(range, None, &[]), None);
        assert_eq!(overlap(range, Some(&service("None")), &[cidr(&["nonsense"])]), None);
    }

    #[test]
    fn a_range_that_holds_the_api_servers_service_or_meets_a_service_range_is_refused() {
        let range = "10.96.0.0/12".parse().unwrap();
        let found = overlap(range, Some(&service("10.96.0.1")), &[]).unwrap();
        assert!(found.contains("10.96.0.1") && found.contains("IPALLOC_RANGE"), "{found}");
        for services in ["10.100.0.0/16", "10.0.0.0/8"] {
            assert!(overlap(range, None, &[cidr(&["fd00::/108", services])]).unwrap().contains(services));
        }
    }
}
