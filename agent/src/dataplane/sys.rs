//! System calls that have no safe wrapper elsewhere: the ioctls of `/dev/net/tun`, socket options and control
//! messages for UDP segmentation, the steering program of a group of sockets, and packet sockets.
//!
//! Every function here is safe to call with any argument: whatever the kernel is given a pointer to lives on the
//! stack or is borrowed for the call, and what the kernel wrote is read within the length that it reported.

#![expect(unsafe_code, reason = "ioctls, control messages and one socket filter have no safe wrapper")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Room for the control messages of one send or receive, aligned as the kernel wants it.
#[repr(C, align(8))]
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

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an integer socket option.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which lives until the call returns.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) })
}

/// Spreads what arrives at a group of sockets by one byte of the payload: `payload[offset] % sockets`.
pub(crate) fn steer_by_byte(fd: BorrowedFd<'_>, offset: u32, sockets: u32) -> io::Result<()> {
    let instruction = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the kernel copies the program, whose length is stated, during the call.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const program).cast(), len) })
}

/// Sends `bytes` in datagrams of `segment` bytes each, by one call. A segment that holds all of them is one ordinary
/// datagram.
pub(crate) fn send_segmented(
    fd: BorrowedFd<'_>,
    to: &SocketAddr,
    bytes: &[u8],
    segment: usize,
    traffic_class: u8,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut message, mut storage): (libc::msghdr, libc::sockaddr_storage) = unsafe { (zeroed(), zeroed()) };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = write_address(&mut storage, to);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let mut used = 0;
    // SAFETY: `message` describes `control`, which has room for both messages (CMSG_SPACE of each is at most 24);
    // the pointers that CMSG_FIRSTHDR and CMSG_NXTHDR give lie in it or are null, and null is not written to.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        if segment < bytes.len() && !at.is_null() {
            used += put_control(at, libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as u16).to_ne_bytes());
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
        if traffic_class != 0 && !at.is_null() {
            let (level, kind) = match to.ip().to_canonical() {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            used += put_control(at, level, kind, &i32::from(traffic_class).to_ne_bytes());
        }
    }
    message.msg_controllen = used;
    if used == 0 {
        message.msg_control = std::ptr::null_mut();
    }
    // SAFETY: everything that `message` points to lives until the call returns, and is only read.
    let sent =
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

/// Receives one datagram, or a run of equal ones from one sender where the socket has `UDP_GRO`.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut message, mut storage): (libc::msghdr, libc::sockaddr_storage) = unsafe { (zeroed(), zeroed()) };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: everything that `message` points to lives until the call returns and may be written.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    let mut received = Received {
        len,
        segment: len,
        from: read_address(&storage)?,
        traffic_class: 0,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
    };
    // SAFETY: the kernel has set msg_controllen to what it wrote; the macros stay within it. Each value is read
    // unaligned and only as many bytes as its kind has.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
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
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
    }
    Ok(received)
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

fn read_address(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is this structure, and the storage is large enough for it.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id)))
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Makes `fd`, an open `/dev/net/tun`, a queue of the device `name`, creating the device if there is none.
pub(crate) fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// The number of the link `name`.
pub(crate) fn link_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the name ends with a zero and lives until the call returns.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// A socket for whole frames of one type on one link, in the reactor of the present runtime.
pub(crate) fn packet_socket(link: u32, ethertype: u16) -> io::Result<AsyncFd<OwnedFd>> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing is received before the address is bound, from no link whatever.
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    checked(fd)?;
    // SAFETY: the kernel has just given this descriptor to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut place: libc::sockaddr_ll = unsafe { zeroed() };
    place.sll_family = libc::AF_PACKET as libc::c_ushort;
    place.sll_protocol = ethertype.to_be();
    place.sll_ifindex = i32::try_from(link).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `place`, which lives until the call returns.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const place).cast(), len) })?;
    // SAFETY: an `OwnedFd` is one and the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// Tells the kernel which work on packets may be left to the reader of the device.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) })
}

/// Lets the device outlive its last queue, or not.
pub(crate) fn tun_set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

#[cfg(test)]
mod tests;
