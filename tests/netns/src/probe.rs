//! Who answers, and whom does it see? Servers that say their name and the client's address, questions to ask
//! them, and paced flows that count what was lost.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::ns::Netns;
use crate::wait::pause;

/// The port that pods serve on.
pub const PORT: u16 = 7000;
/// How long a question may stay unanswered. Long against a busy machine, short against TCP's first
/// retransmission (1 s), so that a lost packet shows.
pub const PATIENCE: Duration = Duration::from_millis(900);
/// What every message of a [`Flow`] begins with: where this is seen on a wire, somebody can read pods' packets.
pub const MARK: &[u8; 20] = b"weave-lab-plain-text";
/// How many of the unanswered questions a report names.
const MISSING: usize = 8;
/// How often a server looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);

/// A TCP and UDP server in a namespace; ends when dropped.
#[derive(Debug)]
pub struct Server {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub server: String,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
}

impl Server {
    /// Serves on `port` of every address of the namespace. A TCP client and each datagram are told the server's
    /// name and the client's address; what follows on TCP, and the datagram's content, are echoed.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Netns, name: &str, port: u16) -> Result<Self> {
        Self::start_at(namespace, name, (Ipv4Addr::UNSPECIFIED, port).into())
    }

    /// The same on one address only. Where a namespace has several, an answer by UDP would otherwise come from
    /// the one that the route back prefers.
    ///
    /// # Errors
    /// The port is taken, or the address is not there.
    pub fn start_at(namespace: &Netns, name: &str, address: SocketAddr) -> Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let listener = namespace
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listening on TCP {address} in {}", namespace.name()))?;
        let socket = namespace
            .enter(|| UdpSocket::bind(address))?
            .with_context(|| format!("listening on UDP {address} in {}", namespace.name()))?;
        let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
        let (tcp_ending, udp_ending) = (Arc::clone(&ending), Arc::clone(&ending));
        let threads = vec![
            namespace.spawn(move || serve_tcp(&listener, &tcp_name, &tcp_ending))?,
            namespace.spawn(move || serve_udp(&socket, &udp_name, &udp_ending))?,
        ];
        Ok(Self { ending, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks a server by TCP from inside a namespace.
///
/// # Errors
/// Nobody answered in time.
pub fn ask_tcp(from: &Netns, server: SocketAddr) -> Result<Answer> {
    let asked = from.enter(|| -> Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        read_greeting(&mut stream)
    })?;
    asked.with_context(|| format!("TCP from {} to {server}", from.name()))
}

/// Asks a server by UDP from inside a namespace, once.
///
/// # Errors
/// Nobody answered in time.
pub fn ask_udp(from: &Netns, server: SocketAddr) -> Result<Answer> {
    let asked = from.enter(|| -> Result<Answer> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server).context("connecting")?;
        socket.send(b"?").context("sending")?;
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).context("waiting for the answer")?;
        parse_greeting(&String::from_utf8_lossy(&buffer[..length]))
    })?;
    asked.with_context(|| format!("UDP from {} to {server}", from.name()))
}

/// One ICMP echo with the system's `ping`.
///
/// # Errors
/// There was no answer within a second.
pub fn ping(from: &Netns, address: impl Into<IpAddr>) -> Result<()> {
    from.run(&format!("ping -n -q -c 1 -W 1 {}", address.into())).map(drop)
}

/// One ICMP echo of a given whole size that must not be fragmented.
///
/// # Errors
/// There was no answer within a second.
pub fn ping_sized(from: &Netns, address: impl Into<IpAddr>, size: u32) -> Result<()> {
    let payload = size.saturating_sub(28);
    // Not quietly: the message says by whom the packet was refused.
    from.run(&format!("ping -n -c 1 -W 1 -M do -s {payload} {}", address.into())).map(drop)
}

/// Ping, TCP and UDP from a namespace to a server that must call itself `name`.
///
/// # Errors
/// One of them fails, or somebody else answers.
pub fn reach(from: &Netns, server: SocketAddr, name: &str) -> Result<Answer> {
    ping(from, server.ip())?;
    let (tcp, udp) = (ask_tcp(from, server)?, ask_udp(from, server)?);
    ensure!(tcp.server == name, "{server} should be {name} and is {} (TCP)", tcp.server);
    ensure!(udp.server == name, "{server} should be {name} and is {} (UDP)", udp.server);
    Ok(tcp)
}

/// Sends `bytes` bytes by TCP to a server and compares what it echoes: large segments take other roads through a
/// kernel than small ones.
///
/// # Errors
/// The transfer stalls, or comes back changed.
pub fn bulk(from: &Netns, server: SocketAddr, bytes: usize) -> Result<()> {
    // TCP waits twice as long after each loss of the same segment: 25 s after the seventh. Where one packet in ten is lost
    // each way, five in a row are nothing rare.
    const STALL: Duration = Duration::from_secs(30);
    // Where one packet in ten is lost, the first three of a connection may well be among them.
    const CONNECTING: Duration = Duration::from_secs(20);
    let sent: Vec<u8> = (0..bytes).map(|place| (place * 31 % 251).to_le_bytes()[0]).collect();
    let moved = from.enter(|| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, CONNECTING).context("connecting")?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        read_greeting(&mut stream)?;
        let mut writer = stream.try_clone()?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| writer.write_all(&sent).context("sending"));
            let mut echoed = vec![0; bytes];
            let read = stream.read_exact(&mut echoed).context("the echo stalled");
            writing.join().map_err(|_| anyhow!("the writing thread panicked"))??;
            read?;
            ensure!(echoed == sent, "the bytes came back changed");
            Ok(())
        })
    })?;
    moved.with_context(|| format!("{bytes} bytes by TCP from {} to {server}", from.name()))
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowReport {
    /// How many questions were asked.
    pub sent: u64,
    /// How many of them this machine's own kernel refused to send, and why it refused the last.
    pub unsent: (u64, Option<String>),
    /// How many were never answered, those that were not sent included.
    pub lost: u64,
    /// Which ones, the first few, counted from zero.
    pub missing: Vec<u64>,
    /// The longest time without an answer.
    pub longest_silence: Duration,
}

/// A paced conversation that runs in the background; ends when dropped.
#[derive(Debug)]
pub struct Flow {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<FlowReport>>>,
}

impl Flow {
    /// Numbered datagrams to a server, one every `pace`, each to be echoed. They leave at their time, whatever
    /// has become of those before.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn udp(from: &Netns, server: SocketAddr, pace: Duration) -> Result<Self> {
        Self::start(from, move |ending| udp_flow(server, pace, ending))
    }

    /// One TCP connection to a server, a numbered message there and back every `pace`. It fails if the connection does.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn tcp(from: &Netns, server: SocketAddr, pace: Duration) -> Result<Self> {
        Self::start(from, move |ending| tcp_flow(server, pace, ending))
    }

    /// Ends the flow and says what became of it.
    ///
    /// # Errors
    /// The flow broke.
    pub fn finish(mut self) -> Result<FlowReport> {
        self.ending.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("a flow ends once"))?;
        thread.join().map_err(|_| anyhow!("a flow's thread panicked"))?
    }

    fn start(
        from: &Netns,
        work: impl FnOnce(&AtomicBool) -> Result<FlowReport> + Send + 'static,
    ) -> Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ending);
        Ok(Self { ending, thread: Some(from.spawn(move || work(&seen))?) })
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn udp_flow(server: SocketAddr, pace: Duration, ending: &AtomicBool) -> Result<FlowReport> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut answered = Vec::new();
    let (mut sent, mut next) = (0_u64, Instant::now());
    let (mut log, mut unsent) = (Silence::new(), (0, None));
    // After the last question the flow listens on, so that an answer under way is not counted as lost.
    while !ending.load(Ordering::Relaxed) || next.elapsed() < PATIENCE {
        let asking = !ending.load(Ordering::Relaxed);
        if asking && next <= Instant::now() {
            // Where there is no route to the server, that question is lost, no more.
            if let Err(error) = socket.send_to(&message(sent), server) {
                unsent = (unsent.0 + 1, Some(error.to_string()));
            }
            sent += 1;
            next += pace;
        }
        let left = next.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), TICK);
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        if let Ok(length) = socket.recv(&mut buffer)
            && let Some((_, number)) = buffer[..length].split_last_chunk::<8>()
        {
            answered.push(u64::from_be_bytes(*number));
            log.heard();
        }
    }
    let answered: BTreeSet<u64> = answered.into_iter().collect();
    let missing = (0..sent).filter(|number| !answered.contains(number)).take(MISSING).collect();
    Ok(FlowReport { sent, unsent, lost: sent - answered.len() as u64, missing, longest_silence: log.longest })
}

fn tcp_flow(server: SocketAddr, pace: Duration, ending: &AtomicBool) -> Result<FlowReport> {
    const DEATH: Duration = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).context("connecting the flow")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEATH))?;
    read_greeting(&mut stream)?;
    let mut log = Silence::new();
    let mut sent = 0_u64;
    while !ending.load(Ordering::Relaxed) {
        let message = message(sent);
        stream.write_all(&message).with_context(|| format!("the flow broke at {sent}"))?;
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo).with_context(|| format!("the flow broke at {sent}"))?;
        ensure!(echo == message, "the flow's bytes came back changed at {sent}");
        log.heard();
        sent += 1;
        pause(pace);
    }
    Ok(FlowReport { sent, unsent: (0, None), lost: 0, missing: Vec::new(), longest_silence: log.longest })
}

/// The message with this number.
fn message(number: u64) -> Vec<u8> {
    [&MARK[..], &number.to_be_bytes()].concat()
}

/// Measures the longest time between two answers.
struct Silence {
    last: Instant,
    longest: Duration,
}

impl Silence {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO }
    }

    fn heard(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, ending: &Arc<AtomicBool>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let mut clients = Vec::new();
    while !ending.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, client)) => {
                let (ending, greeting) = (Arc::clone(ending), greeting(name, client));
                clients.push(std::thread::spawn(move || echo(stream, &greeting, &ending)));
            }
            // Polled often: a client waits for its greeting.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => pause(TICK / 50),
            // A client that gave up before it was accepted, or a namespace that is being taken down.
            Err(_) => pause(TICK),
        }
    }
    for client in clients {
        let _ = client.join();
    }
    Ok(())
}

fn echo(mut stream: TcpStream, greeting: &str, ending: &AtomicBool) {
    let prepared = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.set_read_timeout(Some(TICK)))
        .and_then(|()| stream.write_all(greeting.as_bytes()));
    let mut buffer = [0; 4096];
    while prepared.is_ok() && !ending.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, ending: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(TICK))?;
    let mut buffer = [0; 2048];
    while !ending.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let mut answer = greeting(name, client).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&answer, client);
        }
    }
    Ok(())
}

fn greeting(name: &str, client: SocketAddr) -> String {
    format!("{name} {client}\n")
}

fn read_greeting(stream: &mut TcpStream) -> Result<Answer> {
    let mut text = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("waiting for the greeting")?;
        text.extend_from_slice(&byte);
    }
    parse_greeting(&String::from_utf8_lossy(&text))
}

fn parse_greeting(text: &str) -> Result<Answer> {
    let line = text.lines().next().unwrap_or_default();
    let (server, client) = line.split_once(' ').with_context(|| format!("{line:?} is no greeting"))?;
    let client = client.parse().with_context(|| format!("{client:?} is no address"))?;
    Ok(Answer { server: server.to_owned(), client })
}
