//! Measuring a path between two namespaces, and the arithmetic of honest comparisons.
//!
//! Sender and receiver are threads with plain blocking sockets. Where one flow is measured, each is held on a
//! processor of its own: left alone, the scheduler now puts them together and now apart, and the difference
//! between the two is larger than anything that is to be measured.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::ns::Netns;
use crate::wait::pause;

/// How long a stream runs before it is measured: TCP has left slow start by then.
const WARM_UP: Duration = Duration::from_millis(150);
/// As much as one TCP system call moves.
const CHUNK: usize = 128 * 1024;
/// The content of the smallest packets.
const SMALL: usize = 18;

/// Two namespaces and the address of the second.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    /// Where the sender is.
    pub from: &'a Netns,
    /// Where the receiver is.
    pub to: &'a Netns,
    /// The receiver's address.
    pub address: Ipv4Addr,
}

/// Gigabits a second through `streams` TCP connections.
///
/// # Errors
/// There is no connection.
pub fn tcp_gigabits(path: Path<'_>, streams: usize, period: Duration) -> Result<f64> {
    let load = TcpLoad::start(path, streams)?;
    pause(WARM_UP);
    let (before, start) = (load.received(), Instant::now());
    pause(period);
    let (bytes, elapsed) = (load.received() - before, start.elapsed());
    load.finish()?;
    Ok(as_f64(bytes) * 8.0 / elapsed.as_secs_f64() / 1e9)
}

/// Bytes that arrive by one TCP connection until it is closed, which is after `period`.
///
/// # Errors
/// There is no connection.
pub fn tcp_bytes(path: Path<'_>, period: Duration) -> Result<f64> {
    let load = TcpLoad::start(path, 1)?;
    pause(period);
    let received = Arc::clone(&load.received);
    load.finish()?;
    Ok(as_f64(received.load(Ordering::Relaxed)))
}

/// A flood of UDP packets.
///
/// One sender on one processor makes it: in a lab on one machine the kernel carries a packet through both nodes to the
/// receiver's socket while the sender's system call lasts, on the sender's processor. That processor is busy all the
/// time, so that the rate is the inverse of what a packet costs; the receiver, on the other processor, has less to do.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Bytes of a packet's content.
    pub len: usize,
    /// Packets that the sender hands over by one call and the kernel cuts.
    pub a_call: usize,
}

impl Flood {
    /// Packet by packet, with as little in them as there may be.
    pub const SMALLEST: Self = Self { len: SMALL, a_call: 1 };
}

/// What became of a flood.
#[derive(Debug, Clone, Copy)]
pub struct Flooded {
    /// Thousands of packets a second that arrive.
    pub kilopackets: f64,
    /// What the sender's thread took of its processor for a packet, in nanoseconds: both nodes' work for it, without the
    /// moments in which the machine did something else. A kernel that counts interrupts apart from threads
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`) leaves most of it out.
    pub nanoseconds: f64,
}

/// Measures a flood.
///
/// # Errors
/// The path does not work, or the kernel does not cut what is handed over together.
pub fn udp_flood(path: Path<'_>, flood: Flood, period: Duration) -> Result<Flooded> {
    let receiver = path.to.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let target = SocketAddr::from((path.address, receiver.local_addr()?.port()));
    let sender = path.from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    sender.connect(target)?;
    let handed_over = vec![0; flood.len * flood.a_call];
    let segments = UdpSocketState::new(UdpSockRef::from(&sender))?;
    sender.set_nonblocking(false)?;
    let together = Transmit {
        destination: target,
        ecn: None,
        contents: &handed_over,
        segment_size: Some(flood.len),
        src_ip: None,
    };
    let (ending, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            hold_on(1);
            let mut buffer = [0; 2048];
            while !ending.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let sending = scope.spawn(|| {
            hold_on(0);
            let (mut sent, start) = (0, processor_time());
            while !ending.load(Ordering::Relaxed) {
                let gone = if flood.a_call > 1 {
                    segments.try_send(UdpSockRef::from(&sender), &together).is_ok()
                } else {
                    sender.send(&handed_over).is_ok()
                };
                sent += if gone { flood.a_call as u64 } else { 0 };
            }
            (processor_time() - start) * 1e9 / as_f64(sent)
        });
        pause(WARM_UP);
        let (before, start) = (arrived.load(Ordering::Relaxed), Instant::now());
        pause(period);
        let packets = arrived.load(Ordering::Relaxed) - before;
        let kilopackets = as_f64(packets) / start.elapsed().as_secs_f64() / 1e3;
        ending.store(true, Ordering::Relaxed);
        let nanoseconds = sending.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        Ok(Flooded { kilopackets, nanoseconds })
    })
}

/// Round trips of one small datagram at a time.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrips {
    /// Half of them were faster, in microseconds.
    pub p50: f64,
    /// All but a hundredth were faster, in microseconds.
    pub p99: f64,
}

/// Measures round trips for a while.
///
/// # Errors
/// The path does not work.
pub fn round_trips(path: Path<'_>, period: Duration) -> Result<RoundTrips> {
    let responder = path.to.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    responder.set_read_timeout(Some(Duration::from_millis(100)))?;
    let target = SocketAddr::from((path.address, responder.local_addr()?.port()));
    let asker = path.from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    asker.set_read_timeout(Some(Duration::from_millis(200)))?;
    asker.connect(target)?;
    let ending = AtomicBool::new(false);
    let mut samples = thread::scope(|scope| {
        scope.spawn(|| {
            hold_on(1);
            let mut buffer = [0; 64];
            while !ending.load(Ordering::Relaxed) {
                if let Ok((length, client)) = responder.recv_from(&mut buffer) {
                    let _ = responder.send_to(&buffer[..length], client);
                }
            }
        });
        let asked = scope.spawn(|| {
            hold_on(0);
            ask_for(&asker, period)
        });
        let samples = asked.join().map_err(|_| anyhow!("the asking thread panicked"));
        ending.store(true, Ordering::Relaxed);
        samples
    })?;
    samples.sort_by(f64::total_cmp);
    let at = |part: usize| samples.get(samples.len() * part / 100).copied().context("no round trip in time");
    Ok(RoundTrips { p50: at(50)?, p99: at(99)? })
}

/// Measures round trips while one TCP stream fills the same path.
///
/// # Errors
/// The path does not work.
pub fn round_trips_loaded(path: Path<'_>, period: Duration) -> Result<RoundTrips> {
    let load = TcpLoad::start(path, 1)?;
    pause(WARM_UP);
    let measured = round_trips(path, period);
    load.finish()?;
    measured
}

/// The middle of some values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Runs the calling thread on one processor only, where the machine has that many.
pub fn hold_on(processor: usize) {
    let count = thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(processor % count);
    // A machine that forbids it measures a little less evenly.
    let _ = sched_setaffinity(None, &set);
}

/// The seconds that the calling thread has run.
#[expect(clippy::cast_precision_loss, reason = "seconds of one measurement are far below 2^52")]
fn processor_time() -> f64 {
    let ran = clock_gettime(ClockId::ThreadCPUTime);
    ran.tv_sec as f64 + ran.tv_nsec as f64 / 1e9
}

/// Some TCP connections at full speed.
struct TcpLoad {
    ending: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<Result<()>>>,
}

impl TcpLoad {
    fn start(path: Path<'_>, streams: usize) -> Result<Self> {
        let listener = path.to.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let target = SocketAddr::from((path.address, listener.local_addr()?.port()));
        let mut load = Self { ending: Arc::default(), received: Arc::default(), threads: Vec::new() };
        let alone = streams == 1;
        for _ in 0..streams {
            let sender =
                path.from.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(3)))??;
            let (receiver, _) = listener.accept()?;
            let (ending, received) = (Arc::clone(&load.ending), Arc::clone(&load.received));
            load.threads.push(thread::spawn(move || fill(sender, alone, &ending)));
            load.threads.push(thread::spawn(move || drain(receiver, alone, &received)));
        }
        Ok(load)
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn finish(self) -> Result<()> {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a TCP thread panicked"))??;
        }
        Ok(())
    }
}

fn fill(mut stream: TcpStream, alone: bool, ending: &AtomicBool) -> Result<()> {
    if alone {
        hold_on(0);
    }
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let chunk = vec![0; CHUNK];
    while !ending.load(Ordering::Relaxed) {
        stream.write_all(&chunk).context("the stream broke")?;
    }
    Ok(())
}

fn drain(mut stream: TcpStream, alone: bool, received: &AtomicU64) -> Result<()> {
    if alone {
        hold_on(1);
    }
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut buffer).context("the stream broke")?;
        if length == 0 {
            return Ok(());
        }
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn ask_for(asker: &UdpSocket, period: Duration) -> Vec<f64> {
    let (start, mut samples, mut buffer) = (Instant::now(), Vec::new(), [0; 64]);
    while start.elapsed() < period {
        let asked = Instant::now();
        if asker.send(&[0; SMALL]).is_ok() && asker.recv(&mut buffer).is_ok() {
            samples.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    samples
}

#[expect(clippy::cast_precision_loss, reason = "counts of one measurement are far below 2^52")]
const fn as_f64(count: u64) -> f64 {
    count as f64
}
