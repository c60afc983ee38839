//! Descriptors that clients pass, and how no worker gets to close them.
//!
//! A client can attach open files to a message (`SCM_RIGHTS`, unix(7)). Closing the last reference
//! to a file may block: a TCP socket with `SO_LINGER` and unsent data does, for as long as its peer
//! likes. Discarding such a message closes its files: a receive without a control buffer does so,
//! and so does closing a socket that still holds one. No worker may do either.
//!
//! On Linux 6.16 and later the kernel refuses descriptors for us (`SO_PASSRIGHTS`): the sender gets
//! `EPERM` and nothing is sent. On older systems each packet is peeked before it is received, which
//! leaves the descriptors in the socket. That costs one call per message, and messages can't be
//! received in batches. A connection that passes a descriptor is closed on a separate thread (see
//! [`lingering`](super::lingering)).
//!
//! Receiving the descriptors in a control buffer to close them elsewhere was rejected. If the
//! process runs out of descriptors, the kernel closes those that it can't install, in the receiving
//! thread, and a message can hold 253.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _},
};

use nix::{
    cmsg_space, getsockopt_impl, libc, setsockopt_impl,
    sys::socket::{
        GetSockOpt as _, MsgFlags, SetSockOpt as _, UnixCredentials, recvmsg,
        sockopt::{GetBool, ReceiveTimestamp, SetBool},
    },
};
use rustix::{io::Errno, net::sockopt};

/// The way in which the workers are kept from closing descriptors that the other side passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptors {
    /// The kernel refuses them.
    Refused,
    /// Each packet is peeked first.
    Detected,
}

/// The next packet of a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextPacket {
    /// The other side has closed or ended the conversation, and everything was read.
    End,
    /// A packet of this length.
    Packet(usize),
    /// A packet with descriptors, which must not be received.
    Descriptors,
}

/// Refuses descriptors from now on if the kernel can, and detects them if not.
pub(super) fn refuse(fd: impl AsFd) -> io::Result<Descriptors> {
    match PassRights.set(&fd, &false) {
        Ok(()) => Ok(Descriptors::Refused),
        Err(nix::errno::Errno::ENOPROTOOPT) => {
            detect(fd)?;
            Ok(Descriptors::Detected)
        }
        Err(error) => Err(error.into()),
    }
}

/// Lets [`peek`] distinguish an empty packet from the end: from now on every packet carries its
/// sender's credentials.
pub(super) fn detect(fd: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_passcred(fd, true)?)
}

/// Turns off what a socket that was created elsewhere may add to its packets beside descriptors: a
/// process descriptor (`PassPIDFD=` in a systemd unit), a security label (`PassSecurity=`) and a
/// time (`Timestamping=`). [`peek`] has no room for them and would take them for descriptors, and a
/// receive with room for a process descriptor would open one.
pub(super) fn clear_other_control_data(fd: impl AsFd) -> io::Result<()> {
    let unless_unknown = |result| match result {
        // Before Linux 6.5, and in kernels without security modules.
        Err(nix::errno::Errno::ENOPROTOOPT | nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    };
    unless_unknown(PassPidfd.set(&fd, &false))?;
    unless_unknown(PassSecurity.set(&fd, &false))?;
    // Clears every form of it (`sock_set_timestamp` in net/core/sock.c).
    unless_unknown(ReceiveTimestamp.set(&fd, &false))?;
    Ok(())
}

/// Whether the kernel refuses them.
pub(super) fn are_refused(fd: impl AsFd) -> bool {
    PassRights.get(&fd) == Ok(false)
}

/// Undoes [`refuse`].
#[cfg(test)]
pub(super) fn allow(fd: impl AsFd) {
    _ = PassRights.set(&fd, &true);
}

/// Peeks at the next packet of a socket on which descriptors are [detected](detect).
pub(super) fn peek(fd: impl AsFd) -> Result<NextPacket, Errno> {
    let mut control = cmsg_space!(UnixCredentials);
    let room = control.capacity();
    control.resize(room, 0);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    // One buffer without room, because with none QEMU's user mode returns 0 without a system call.
    let mut nothing = [IoSliceMut::new(&mut [])];
    let packet = recvmsg::<()>(
        fd.as_fd().as_raw_fd(),
        &mut nothing,
        Some(&mut control),
        flags,
    )
    .map_err(|error| Errno::from_raw_os_error(error as i32))?;
    // Has room for the sender's credentials, which every packet has and the end does not, and for
    // nothing else.
    if packet.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Ok(NextPacket::Descriptors);
    }
    let is_end = packet
        .cmsgs()
        .is_ok_and(|mut control| control.next().is_none());
    Ok(match is_end {
        true => NextPacket::End,
        false => NextPacket::Packet(packet.bytes),
    })
}

/// Makes every packet carry all that [`clear_other_control_data`] turns off.
#[cfg(test)]
pub(super) fn add_other_control_data(fd: impl AsFd) {
    _ = PassPidfd.set(&fd, &true);
    _ = PassSecurity.set(&fd, &true);
    ReceiveTimestamp.set(&fd, &true).unwrap();
}

/// include/uapi/asm-generic/socket.h and arch/sparc/include/uapi/asm/socket.h.
const SO_PASSRIGHTS: libc::c_int = match cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
    true => 92,
    false => 83,
};

#[derive(Clone, Copy)]
struct PassRights;

#[derive(Clone, Copy)]
struct PassPidfd;

#[derive(Clone, Copy)]
struct PassSecurity;

// rustix has neither these options nor a way to set arbitrary ones.
setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, SetBool);
getsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, GetBool);
setsockopt_impl!(
    PassPidfd,
    libc::SOL_SOCKET,
    libc::SO_PASSPIDFD,
    bool,
    SetBool
);
setsockopt_impl!(
    PassSecurity,
    libc::SOL_SOCKET,
    libc::SO_PASSSEC,
    bool,
    SetBool
);
