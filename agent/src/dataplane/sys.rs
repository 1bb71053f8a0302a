//! System calls that have no safe wrapper elsewhere: the ioctls of `/dev/net/tun`, socket options, runs of UDP datagrams
//! ([`udp`]), the steering program of a group of sockets, and packet sockets.
//!
//! Every function here is safe to call with any argument: whatever the kernel is given a pointer to lives on the
//! stack or is borrowed for the call, and what the kernel wrote is read within the length that it reported.

#![expect(unsafe_code, reason = "ioctls, control messages and one socket filter have no safe wrapper")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) mod udp;

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
    // Only to read: the kernel would tell of room to write after each frame sent, a wake-up that nobody waits for.
    // SAFETY: an `OwnedFd` is one and the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// Tells the kernel which work on packets may be left to the reader of the device.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) })
}

/// Asks the scheduler (Linux 6.12) to give this thread short turns on a processor and, in return, early ones. No share
/// of the processor's time comes with it, so it needs no privilege.
pub(crate) fn ask_for_short_turns(turn: Duration) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut wanted: libc::sched_attr = unsafe { zeroed() };
    wanted.size = size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = libc::SCHED_OTHER as u32;
    wanted.sched_nice = rustix::process::getpriority_process(None)?;
    wanted.sched_runtime = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads as many bytes of `wanted` as it says that it has; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the device outlive its last queue, or not.
pub(crate) fn tun_set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

#[cfg(test)]
mod tests;
