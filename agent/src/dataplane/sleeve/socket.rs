//! The UDP sockets of the engine, with every offload that the kernel has and a way to do without each.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use weave_sleeve::header::QUEUE_OFFSET;
use weave_sleeve::outbox::Batch;

use super::counters::Counters;
use crate::dataplane::sys;
use crate::dataplane::sys::udp::{self, Tray};

/// What a segmented send may burst into the other end's socket in a few milliseconds at 10 Gb/s.
const RECEIVE_BUFFER: i32 = 16 << 20;

/// A few milliseconds of sending: more would only be a queue.
const SEND_BUFFER: i32 = 4 << 20;

/// One queue's socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    v6: bool,
    segmentation: AtomicBool,
    /// What the next segmented send is to fail with: kernels that do are hard to come by.
    #[cfg(test)]
    pub(super) fault: std::sync::atomic::AtomicI32,
}

impl Socket {
    /// Binds one socket a queue to the same address. What arrives is spread by the queue byte of the record, so that
    /// the sender's queue decides the receiver's thread and no flow is reordered.
    pub(super) fn bind_group(listen: SocketAddr, queues: u8) -> io::Result<Vec<Self>> {
        let group: Vec<Self> = (0..queues.max(1)).map(|_| Self::bind(listen)).collect::<io::Result<_>>()?;
        if let (Some(first), true) = (group.first(), group.len() > 1) {
            sys::steer_by_byte(first.as_fd(), QUEUE_OFFSET as u32, u32::from(queues))?;
        }
        Ok(group)
    }

    fn bind(listen: SocketAddr) -> io::Result<Self> {
        let v6 = listen.is_ipv6();
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        let option = |level, name, value| sys::set_option(fd.as_fd(), level, name, value);
        if v6 {
            option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
            option(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            option(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        }
        // On a socket of both families these concern the IPv4 half.
        option(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        option(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        for (forced, asked, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
        ] {
            // Beyond the system's limit if allowed, else as much as it gives.
            if option(libc::SOL_SOCKET, forced, size).is_err() {
                option(libc::SOL_SOCKET, asked, size)?;
            }
        }
        // A kernel without it hands datagrams over one by one, which is slow and right.
        drop(option(libc::SOL_UDP, libc::UDP_GRO, 1));
        rustix::net::bind(&fd, &listen)?;
        Ok(Self {
            fd,
            v6,
            segmentation: AtomicBool::new(true),
            #[cfg(test)]
            fault: Default::default(),
        })
    }

    /// Receives up to `most` runs and says how many came.
    #[inline]
    pub(super) fn receive(&self, tray: &mut Tray, most: usize) -> io::Result<usize> {
        tray.receive(self.fd.as_fd(), most)
    }

    /// The address in the family of the socket.
    pub(super) fn mapped(&self, addr: SocketAddr) -> SocketAddr {
        match addr {
            SocketAddr::V4(v4) if self.v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
        }
    }

    /// Sends batches in their order: all by one call while that works, else one by one, and the datagrams of a batch
    /// that cannot be segmented one by one.
    #[inline]
    pub(super) fn send(&self, to: &SocketAddr, batches: &[Batch<'_>], count: &Counters) {
        let mut rest = batches;
        while let Some((first, behind)) = rest.split_first() {
            let single = first.datagrams.len() <= first.segment;
            if !single && !self.segmentation.load(Ordering::Relaxed) {
                self.send_unsegmented(to, first, count);
                rest = behind;
                continue;
            }
            match self.send_patiently(to, rest) {
                Ok(sent) => {
                    let (sent, behind) = rest.split_at(sent.clamp(1, rest.len()));
                    count.batches_sent.add(sent.len() as u64);
                    count.bytes_sent.add(sent.iter().map(|batch| batch.datagrams.len() as u64).sum());
                    rest = behind;
                }
                Err(error) => {
                    if !single && self.is_about_segmentation(&error) {
                        self.send_unsegmented(to, first, count);
                    } else {
                        count_failure(&error, count);
                    }
                    rest = behind;
                }
            }
        }
    }

    fn send_unsegmented(&self, to: &SocketAddr, batch: &Batch<'_>, count: &Counters) {
        count.unsegmented_batches.one();
        for datagram in batch.datagrams.chunks(batch.segment) {
            match self.send_patiently(to, &[Batch { datagrams: datagram, ..*batch }]) {
                Ok(_) => count.bytes_sent.add(datagram.len() as u64),
                Err(error) => count_failure(&error, count),
            }
        }
    }

    /// Whether the same bytes may pass without segmentation. EIO comes from a device that cannot sum (and so cannot
    /// segment), EINVAL and EOPNOTSUPP from a kernel without it: it is given up for this socket. EMSGSIZE means that
    /// the *segments* are longer than the path to this peer takes now: shorter ones of the batch still pass.
    fn is_about_segmentation(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                self.segmentation.store(false, Ordering::Relaxed);
                true
            }
            Some(libc::EMSGSIZE) => true,
            _ => false,
        }
    }

    /// Sends as many as the kernel takes by one call, waiting while the send buffer is full, and once more after a
    /// signal or a reported error of an earlier send (ICMP errors are reported by the next call on the socket, whatever
    /// it is).
    fn send_patiently(&self, to: &SocketAddr, batches: &[Batch<'_>]) -> io::Result<usize> {
        #[cfg(test)]
        if batches.iter().any(|batch| batch.datagrams.len() > batch.segment)
            && self.fault.load(Ordering::Relaxed) != 0
        {
            return Err(io::Error::from_raw_os_error(self.fault.swap(0, Ordering::Relaxed)));
        }
        let mut tries = 0;
        loop {
            match udp::send(self.fd.as_fd(), to, batches) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_until_writable()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries == 0 => tries += 1,
                done => return done,
            }
        }
    }

    fn wait_until_writable(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&patience)) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(test)]
    pub(super) fn segments(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }
}

fn count_failure(error: &io::Error, count: &Counters) {
    if error.raw_os_error() == Some(libc::EMSGSIZE) {
        count.too_long_sent.one();
    } else {
        count.send_failures.one();
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
