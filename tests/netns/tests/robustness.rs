//! Nonsense on every door, by anybody who can reach it, changes nothing.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::ns::Netns;
use weave_netns::probe;
use weave_netns::seed::Chance;
use weave_netns::{Host, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);
/// How long a door may think about nonsense.
const DOOR_PATIENCE: Duration = Duration::from_millis(500);
/// What an agent may hold after all of it: its budget at rest and some room for an unoptimised build.
const MEMORY_KIB: u64 = 64 * 1024;

#[test]
fn garbage_on_every_socket_changes_nothing() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let stranger = lab.host("stranger")?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _server = other.serve()?;
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let mut chance = Chance::of_run(lab.settings(), 3);
        let (target, node) = (&hosts[0], hosts[0].ns()?);
        for port in [6783, 6784, 6785] {
            udp_garbage(&*stranger.ns()?, (target.address(), port), &mut chance)?;
            udp_garbage(one.ns(), (target.address(), port), &mut chance)?;
        }
        for port in [6782, 6784] {
            tcp_garbage(&node, port, &mut chance)?;
        }
        for socket in ["weave.sock", "cni.sock"] {
            unix_garbage(&target.run_dir().join(socket), &mut chance)
                .with_context(|| format!("writing garbage to {socket}"))?;
        }
        ensure!(target.is_running()?, "garbage ended the agent");
        still_works(target, &one, &other)?;
        let memory = resident_kib(target.pid()?)?;
        ensure!(memory < MEMORY_KIB, "the agent holds {memory} KiB after the garbage");
        Ok(())
    });
}

#[test]
fn the_doors_for_watching_are_not_open_to_the_outside_and_change_nothing() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        for port in [6782, 6784] {
            let there = (hosts[0].address(), port).into();
            let open = lab.underlay().enter(|| TcpStream::connect_timeout(&there, DOOR_PATIENCE).is_ok())?;
            ensure!(!open, "port {port} answers to the outside");
        }
        let node = hosts[0].ns()?;
        for request in ["POST /connect", "DELETE /ip/weave:expose", "PUT /ip/x", "POST /peer/x"] {
            let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            let answer = http(&node, 6784, request.as_bytes())?;
            let code = answer.split_whitespace().nth(1).unwrap_or_default();
            ensure!(code == "404" || code == "405", "{request:?} was answered {code}");
        }
        let page =
            http(&node, 6784, b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        ensure!(page.contains("200 OK"), "GET /status was answered {page}");
        Ok(())
    });
}

fn still_works(host: &Host, one: &weave_netns::Pod, other: &weave_netns::Pod) -> Result<()> {
    probe::reach(one.ns(), other.service(), "other")?;
    host.status(&[])?;
    let fresh = host.pod("fresh")?;
    eventually(PATIENCE, "a new pod talks", || probe::reach(fresh.ns(), other.service(), "other"))?;
    fresh.detach(host)
}

fn udp_garbage(from: &Netns, to: (Ipv4Addr, u16), chance: &mut Chance) -> Result<()> {
    let datagrams: Vec<_> = (0..200)
        .map(|_| {
            let length = usize::try_from(chance.below(1400)).unwrap_or_default();
            let mut bytes = chance.bytes(length);
            // Half of them look like the first packet of a QUIC connection.
            if let (Some(first), 0) = (bytes.first_mut(), chance.below(2)) {
                *first = 0xc0 | (*first & 0x0f);
            }
            bytes
        })
        .collect();
    from.enter(|| -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for datagram in &datagrams {
            // A closed port answers with an error that shows at the next sending.
            let _ = socket.send_to(datagram, to);
        }
        Ok(())
    })?
}

fn tcp_garbage(node: &Netns, port: u16, chance: &mut Chance) -> Result<()> {
    let texts = [
        chance.bytes(4000),
        b"GET ".to_vec(),
        vec![b'A'; 200_000],
        b"GET /../../etc/passwd HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for text in &texts {
        http(node, port, text).with_context(|| format!("garbage to TCP {port}"))?;
    }
    Ok(())
}

/// Says something to a local TCP port and returns what comes back, if anything.
fn http(node: &Netns, port: u16, request: &[u8]) -> Result<String> {
    node.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
        stream.set_read_timeout(Some(DOOR_PATIENCE))?;
        stream.set_write_timeout(Some(DOOR_PATIENCE))?;
        Ok(conversation(&mut stream, request))
    })?
}

fn unix_garbage(socket: &Path, chance: &mut Chance) -> Result<()> {
    let mut open = Vec::new();
    for text in
        [chance.bytes(5000), b"{".to_vec(), b"{}\n".to_vec(), b"null\n".to_vec(), vec![b'['; 2_000_000]]
    {
        let mut stream = UnixStream::connect(socket).context("connecting")?;
        stream.set_read_timeout(Some(DOOR_PATIENCE))?;
        stream.set_write_timeout(Some(DOOR_PATIENCE))?;
        conversation(&mut stream, &text);
        // Left open on purpose: somebody who never finishes must not block others.
        open.push(stream);
    }
    Ok(())
}

/// Says something and listens for an answer; either may fail, which is an answer too.
fn conversation(stream: &mut (impl std::io::Read + std::io::Write), text: &[u8]) -> String {
    let _ = stream.write_all(text);
    let mut answer = Vec::new();
    let _ = stream.take(1 << 20).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("reading VmRSS")
}
