//! What the tunnels in user space refuse, and that it is counted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::ns::Netns;
use weave_netns::pair::PASSWORD;
use weave_netns::{Host, command, eventually, probe, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where sealed records go.
const SLEEVE: u16 = 6785;
/// How many records are captured.
const RECORDS: usize = 8;

#[test]
fn records_that_are_sent_again_or_changed_on_the_way_are_dropped_and_counted() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b"], |options| options.flag(PASSWORD))?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        eventually(PATIENCE, "the pods talk", || probe::ping(one.ns(), other.address()))?;
        let records = captured(&*hosts[0].ns()?, lab.scratch(), || probe::ping(one.ns(), other.address()))?;
        let seen = Capture::inbound(other.ns(), INTERFACE, "icmp")?;
        let before = (drops(&hosts[1], "replayed")?, drops(&hosts[1], "forged")?);
        let target = SocketAddrV4::new(hosts[1].address(), SLEEVE);
        lab.underlay().enter(|| -> Result<()> {
            let stranger = UdpSocket::bind("0.0.0.0:0")?;
            for record in &records {
                stranger.send_to(record, target)?;
                for changed in changes(record) {
                    stranger.send_to(&changed, target)?;
                }
            }
            Ok(())
        })??;
        eventually(PATIENCE, "they are counted", || {
            let now = (drops(&hosts[1], "replayed")?, drops(&hosts[1], "forged")?);
            // What was changed under a number that was seen is a replay; what has a number of its own is forged.
            ensure!(now.0 >= before.0 + 2 * RECORDS as u64, "{before:?} before, {now:?} now");
            ensure!(now.1 >= before.1 + RECORDS as u64, "{before:?} before, {now:?} now");
            Ok(())
        })?;
        let seen = seen.finish()?;
        ensure!(seen.is_empty(), "the pod saw {seen:?}");
        let summary = hosts[1].weave(&["status"])?;
        ensure!(summary.contains("TunnelDrops: "), "{summary}");
        probe::ping(one.ns(), other.address()).context("and the session goes on")?;
        let session = &hosts[1].status(&["connections"])?[0]["method"]["session"];
        ensure!(session["opened_records"].as_u64() > Some(0), "{session}");
        Ok(())
    });
}

/// The record with its tag changed, and with another number.
fn changes(record: &[u8]) -> [Vec<u8>; 2] {
    /// Where the low byte of a record's number stands but one: far enough ahead to be a new one.
    const NUMBER: usize = 13;
    let flipped = |at: usize| {
        let mut record = record.to_vec();
        record[at] ^= 0x01;
        record
    };
    [flipped(record.len() - 1), flipped(NUMBER)]
}

/// Records that leave a node while `cause` happens.
fn captured(node: &Netns, scratch: &Path, cause: impl Fn() -> Result<()>) -> Result<Vec<Vec<u8>>> {
    let file = scratch.join("records.pcap");
    let (filter, count) = (format!("udp dst port {SLEEVE} and less 400"), RECORDS.to_string());
    let mut tcpdump = command::words("tcpdump", ["-n", "-U", "-i", UPLINK, "-Q", "out", "-c", &count, "-w"]);
    tcpdump.arg(&file).arg(filter);
    let mut tcpdump = node.start(tcpdump)?;
    eventually(PATIENCE, "enough is captured", || {
        cause()?;
        tcpdump.try_wait()?.context("not enough yet").map(drop)
    })?;
    let pcap = std::fs::read(&file).context("reading the capture")?;
    let records = payloads(pcap.get(24..).unwrap_or_default());
    ensure!(records.len() == RECORDS, "{} records in the capture", records.len());
    Ok(records)
}

/// The UDP payloads of a capture file behind its header: frames of Ethernet and IPv4, each behind sixteen bytes.
fn payloads(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while let Some(length) = rest.get(8..12).and_then(|bytes| bytes.try_into().ok().map(u32::from_le_bytes)) {
        let Some(frame) = rest.get(16..16 + length as usize) else { break };
        let header = usize::from(frame[14] & 0x0f) * 4;
        payloads.push(frame[14 + header + 8..].to_vec());
        rest = &rest[16 + length as usize..];
    }
    payloads
}

/// What the metrics of a node count under this reason.
fn drops(host: &Host, reason: &str) -> Result<u64> {
    let mut text = String::new();
    host.ns()?.enter(|| -> Result<()> {
        let mut metrics = TcpStream::connect("127.0.0.1:6782").context("connecting to the metrics")?;
        metrics.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        metrics.read_to_string(&mut text).map(drop).context("reading the metrics")
    })??;
    let name = format!("weave_tunnel_drops_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(name.as_str()));
    line.with_context(|| format!("no {name:?} in {text}"))?.trim().parse().context("a count")
}
