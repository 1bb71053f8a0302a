//! Runs of UDP datagrams: several by one call, each run cut and put together by the kernel (`UDP_SEGMENT`, `UDP_GRO`).

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use weave_sleeve::outbox::{Batch, MAX_BATCHES};

/// Runs that one call receives at most.
pub(crate) const MAX_RUNS: usize = 64;

/// The longest run that `UDP_GRO` gives.
const RUN_LEN: usize = 65_536;

/// From one buffer to the next. Not a power of two, so that the first lines of many short runs do not all compete for
/// the same lines of the processor's caches.
const STRIDE: usize = RUN_LEN + 1536 + 64;

/// Room for the control messages of one send or receive, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

/// What came with a received run of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes in all.
    pub(crate) len: usize,
    /// Bytes of each datagram but the last; the whole length if there is only one.
    pub(crate) segment: usize,
    /// The sender.
    pub(crate) from: SocketAddr,
    /// The IPv4 TOS or IPv6 traffic class byte.
    pub(crate) traffic_class: u8,
    /// The buffer was too short and the rest is lost.
    pub(crate) truncated: bool,
}

/// Sends batches in their order, all of them by one call if the kernel takes them, and returns how many it took. What
/// was wrong with the next one is said when sending begins with it.
pub(crate) fn send(fd: BorrowedFd<'_>, to: &SocketAddr, batches: &[Batch<'_>]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut messages, mut parts, mut storage): (
        [libc::mmsghdr; MAX_BATCHES],
        [libc::iovec; MAX_BATCHES],
        libc::sockaddr_storage,
    ) = unsafe { (zeroed(), zeroed(), zeroed()) };
    let mut control = [Control([0; 128]); MAX_BATCHES];
    let name_len = write_address(&mut storage, to);
    let count = batches.len().min(MAX_BATCHES);
    for (((message, part), control), batch) in
        messages.iter_mut().zip(&mut parts).zip(&mut control).zip(batches)
    {
        let message = &mut message.msg_hdr;
        part.iov_base = batch.datagrams.as_ptr().cast_mut().cast();
        part.iov_len = batch.datagrams.len();
        message.msg_name = (&raw mut storage).cast();
        message.msg_namelen = name_len;
        message.msg_iov = part;
        message.msg_iovlen = 1;
        put_controls(message, control, to, batch);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages are filled in, and everything that they point to lives until the call returns
    // and is only read.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Says how long the segments are, and the traffic class.
fn put_controls(message: &mut libc::msghdr, control: &mut Control, to: &SocketAddr, batch: &Batch<'_>) {
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let mut used = 0;
    // SAFETY: `message` describes `control`, which has room for both messages (CMSG_SPACE of each is at most 24);
    // the pointers that CMSG_FIRSTHDR and CMSG_NXTHDR give lie in it or are null, and null is not written to.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(message);
        if batch.segment < batch.datagrams.len() && !at.is_null() {
            used += put_control(at, libc::SOL_UDP, libc::UDP_SEGMENT, &(batch.segment as u16).to_ne_bytes());
            at = libc::CMSG_NXTHDR(message, at);
        }
        let traffic_class = batch.ecn as i32;
        if traffic_class != 0 && !at.is_null() {
            let (level, kind) = match to.ip().to_canonical() {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            used += put_control(at, level, kind, &traffic_class.to_ne_bytes());
        }
    }
    message.msg_controllen = used;
    if used == 0 {
        message.msg_control = std::ptr::null_mut();
    }
}

/// Writes one control message at `at` and returns the space that it takes.
///
/// # Safety
/// `at` points to a control message header with room for `data` behind it.
unsafe fn put_control(at: *mut libc::cmsghdr, level: i32, kind: i32, data: &[u8]) -> usize {
    let len = data.len() as u32;
    // SAFETY: the caller vouches for the room; CMSG_DATA of a valid header points into it.
    unsafe {
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(len) as usize;
        std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(at), data.len());
        libc::CMSG_SPACE(len) as usize
    }
}

/// Where received runs lie. Allocates once, when made; pages that no run has reached are not touched.
pub(crate) struct Tray {
    bytes: Box<[u8]>,
    /// Bytes of the longest run.
    room: usize,
    slots: Box<[Slot]>,
}

/// What the kernel says about one run.
struct Slot {
    control: Control,
    name: libc::sockaddr_storage,
    received: Option<Received>,
}

impl Tray {
    /// Room for [`MAX_RUNS`] runs.
    pub(crate) fn new() -> Self {
        Self::with_room(RUN_LEN)
    }

    fn with_room(room: usize) -> Self {
        // SAFETY: all-zero is a valid value of this plain C structure.
        let name: libc::sockaddr_storage = unsafe { zeroed() };
        let slots =
            (0..MAX_RUNS).map(|_| Slot { control: Control([0; 128]), name, received: None }).collect();
        Self { bytes: vec![0; STRIDE * MAX_RUNS].into_boxed_slice(), room: room.min(STRIDE), slots }
    }

    /// Receives up to `most` runs by one call and returns how many came. Fewer than asked for: there are no more.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let most = most.clamp(1, MAX_RUNS);
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (mut messages, mut parts): ([libc::mmsghdr; MAX_RUNS], [libc::iovec; MAX_RUNS]) =
            unsafe { (zeroed(), zeroed()) };
        let places = self.bytes.chunks_exact_mut(STRIDE).zip(&mut self.slots);
        for ((message, part), (bytes, slot)) in messages.iter_mut().zip(&mut parts).zip(places).take(most) {
            let message = &mut message.msg_hdr;
            part.iov_base = bytes.as_mut_ptr().cast();
            part.iov_len = self.room;
            message.msg_name = (&raw mut slot.name).cast();
            message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_iov = part;
            message.msg_iovlen = 1;
            message.msg_control = slot.control.0.as_mut_ptr().cast();
            message.msg_controllen = slot.control.0.len();
        }
        // SAFETY: the first `most` messages are filled in, and everything that they point to lives until the call
        // returns and may be written.
        let got = unsafe {
            let count = most as libc::c_uint;
            libc::recvmmsg(
                fd.as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for (message, slot) in messages.iter().zip(&mut self.slots).take(got) {
            slot.received = read_message(message, &slot.name);
        }
        Ok(got)
    }

    /// One of the runs that came by the last call, and what came with it; none if it was of no known family.
    #[inline]
    pub(crate) fn run(&mut self, at: usize) -> Option<(Received, &mut [u8])> {
        let received = self.slots.get(at)?.received?;
        let start = at * STRIDE;
        Some((received, self.bytes.get_mut(start..start + received.len)?))
    }
}

/// Reads what the kernel has written beside a run.
fn read_message(message: &libc::mmsghdr, name: &libc::sockaddr_storage) -> Option<Received> {
    let len = message.msg_len as usize;
    let message = &message.msg_hdr;
    let mut received = Received {
        len,
        segment: len,
        from: read_address(name)?,
        traffic_class: 0,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
    };
    // SAFETY: the kernel has set msg_controllen to what it wrote; the macros stay within it. Each value is read
    // unaligned and only as many bytes as its kind has.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(message);
        while let Some(head) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            match (head.cmsg_level, head.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = data.cast::<libc::c_int>().read_unaligned();
                    received.segment = usize::try_from(segment).unwrap_or(0).clamp(1, len.max(1));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => received.traffic_class = data.read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    let class = data.cast::<libc::c_int>().read_unaligned();
                    received.traffic_class = u8::try_from(class).unwrap_or(0);
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(message, at);
        }
    }
    Some(received)
}

fn write_address(storage: &mut libc::sockaddr_storage, addr: &SocketAddr) -> libc::socklen_t {
    match addr {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than, and aligned for, every socket address.
            unsafe { (&raw mut *storage).cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut *storage).cast::<libc::sockaddr_in6>().write(name) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is this structure, and the storage is large enough for it.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
