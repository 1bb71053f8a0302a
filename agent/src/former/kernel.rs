//! Weave Net's devices, Open vSwitch datapaths and ipsets, found and removed over netlink.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::io::Errno;

use crate::firewall::elements::Message;
use crate::net::names::{BRIDGE, BRIDGE_GROUP};
use crate::net::observe::{self, ObservedLink, Shape};
use crate::net::{Netlink, attributes, errno, reset};

/// Devices with names that nobody else gives: the two pairs between bridge and datapath, the tunnel, and the one that
/// only held the bridge's MTU.
const DEVICES: [&str; 5] = ["vethwe-bridge", "vethwe-datapath", "vethwe-pcap", "vxlan-6784", "vethwedu"];
/// The datapath beside the bridge; without a bridge it is the device [`BRIDGE`].
const DATAPATH: &str = "datapath";
/// The kind of a datapath's device.
const OPEN_VSWITCH: &str = "openvswitch";

/// The ipset subsystem of netfilter netlink (`NFNL_SUBSYS_IPSET`), as the high byte of a message's type.
const IPSET: u16 = 6 << 8;
const DESTROY: u16 = IPSET | 3;
const LIST: u16 = IPSET | 7;
/// The controller of generic netlink: which number a family has (CTRL_CMD_GETFAMILY) is asked by CTRL_ATTR_FAMILY_NAME
/// and answered with CTRL_ATTR_FAMILY_ID.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Open vSwitch's family of datapaths: OVS_DP_CMD_DEL by OVS_DP_ATTR_NAME.
const DATAPATHS: &str = "ovs_datapath";
const DELETE: u8 = 2;
const DATAPATH_NAME: u16 = 1;
/// `IPSET_ATTR_PROTOCOL`, and the version that all kernels since 2.6.39 speak.
const PROTOCOL: (u16, &[u8]) = (1, &[6]);
/// `IPSET_ATTR_SETNAME`.
const SET_NAME: u16 = 2;
/// Bytes of `nfgenmsg`, and of the generic netlink header.
const GENERIC: usize = 4;

/// A device that is Weave Net's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    index: u32,
    pub(super) is_datapath: bool,
}

/// Its devices, in the order in which they are to go.
pub(super) fn devices() -> io::Result<Vec<Device>> {
    let links = observe::links(&mut Netlink::open(NETLINK_ROUTE)?).map_err(io::Error::other)?;
    Ok(of(&links))
}

fn of(links: &BTreeMap<String, ObservedLink>) -> Vec<Device> {
    let former = |name: &str, link: &ObservedLink| match name {
        // Our own bridge has our group from the moment it is made.
        BRIDGE => {
            link.kind == OPEN_VSWITCH
                || (matches!(link.shape, Shape::Bridge { .. }) && link.group != BRIDGE_GROUP)
        }
        DATAPATH => link.kind == OPEN_VSWITCH,
        name => DEVICES.contains(&name),
    };
    let mut found: Vec<_> = links
        .iter()
        .filter(|(name, link)| former(name, link))
        .map(|(name, link)| Device {
            name: name.clone(),
            index: link.index,
            is_datapath: link.kind == OPEN_VSWITCH,
        })
        .collect();
    found.sort_by_key(|device| (device.name == BRIDGE, device.is_datapath));
    found
}

/// Removes a device; one that went with another before is no error.
pub(super) fn remove_device(device: &Device) -> io::Result<()> {
    if device.is_datapath {
        return remove_datapath(&device.name);
    }
    reset::delete_link(&device.name, device.index).map_err(io::Error::other)
}

/// The kernel deletes a datapath's device only with the datapath, which Open vSwitch's own family of generic netlink
/// does.
fn remove_datapath(name: &str) -> io::Result<()> {
    let mut socket = Netlink::open(NETLINK_GENERIC)?;
    let mut ask = generic(CONTROL, NLM_F_REQUEST, GET_FAMILY, 1);
    ask.text(FAMILY_NAME, DATAPATHS);
    let answer = socket.get(&ask.finish())?;
    let mut family = None;
    attributes(answer.payload.get(GENERIC..).unwrap_or_default(), |kind, value| {
        if kind == FAMILY_ID {
            family = value.try_into().ok().map(u16::from_ne_bytes);
        }
    });
    let family = family.ok_or_else(|| io::Error::other("the kernel does not name Open vSwitch's family"))?;
    let mut order = generic(family, NLM_F_REQUEST | NLM_F_ACK, DELETE, 2);
    // The header of Open vSwitch: the index of the device, where no name is given.
    order.raw(&0_u32.to_ne_bytes());
    order.text(DATAPATH_NAME, name);
    one(&mut socket, order)
}

fn generic(family: u16, flags: u16, command: u8, version: u8) -> Message {
    Message::with_header(family, flags, [command, version, 0, 0])
}

/// The names of its ipsets: those that hold others first, as far as the kernel lists them so.
pub(super) fn sets() -> io::Result<Vec<String>> {
    let mut ask = Message::new(LIST, NLM_F_REQUEST | NLM_F_DUMP, 0);
    ask.bytes(PROTOCOL.0, PROTOCOL.1);
    let answers = match Netlink::open(NETLINK_NETFILTER)?.dump(&ask.finish()) {
        Ok(answers) => answers,
        // A kernel without ipset has none.
        Err(error) if matches!(errno(&error), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOENT)) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> = Vec::new();
    for answer in answers {
        attributes(answer.payload.get(GENERIC..).unwrap_or_default(), |kind, value| {
            let name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            if kind == SET_NAME && is_set(&name) && !names.contains(&name) {
                names.push(name);
            }
        });
    }
    Ok(names)
}

fn is_set(name: &str) -> bool {
    name.starts_with("weave-") || name == "weaver-no-masq-local"
}

/// Destroys a set. It fails while a rule or another set holds it.
pub(super) fn remove_set(name: &str) -> io::Result<()> {
    let mut order = Message::new(DESTROY, NLM_F_REQUEST | NLM_F_ACK, 0);
    order.bytes(PROTOCOL.0, PROTOCOL.1);
    order.text(SET_NAME, name);
    one(&mut Netlink::open(NETLINK_NETFILTER)?, order)
}

fn one(socket: &mut Netlink, order: Message) -> io::Result<()> {
    socket.requests(&[order.finish()])?.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_devices_are_told_from_ours_and_the_bridge_goes_last_but_for_datapaths() {
        let link = |kind: &str, group, shape| ObservedLink {
            kind: kind.to_owned(),
            group,
            shape,
            ..ObservedLink::default()
        };
        let bridge = || Shape::Bridge { plain: true, filters_vlans: false };
        let mut links = BTreeMap::from([
            (BRIDGE.to_owned(), link("bridge", 0, bridge())),
            ("vethwe-bridge".to_owned(), link("veth", 0, Shape::Other)),
            ("vethweplours".to_owned(), link("veth", 0, Shape::Other)),
            (DATAPATH.to_owned(), link(OPEN_VSWITCH, 0, Shape::Other)),
        ]);
        let names = |links: &BTreeMap<String, ObservedLink>| {
            of(links).into_iter().map(|device| device.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&links), ["vethwe-bridge", DATAPATH, BRIDGE]);
        links.insert(BRIDGE.to_owned(), link("bridge", BRIDGE_GROUP, bridge()));
        links.insert(DATAPATH.to_owned(), link("dummy", 0, Shape::Other));
        assert_eq!(names(&links), ["vethwe-bridge"]);
    }
}
