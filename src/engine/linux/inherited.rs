//! Sockets that were created elsewhere: by a service manager, a parent process or socketpair(2).

use std::{
    ffi::OsStr,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt as _},
    path::PathBuf,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketType, getsockname, sockopt},
    process::geteuid,
};

/// Checks that `socket` listens for clients of a pipe, and returns its path.
///
/// # Errors
///
/// Says what it is instead, and what to do.
pub(crate) fn listening(socket: impl AsFd) -> Result<PathBuf, String> {
    check_type(&socket)?;
    if !sockopt::socket_acceptconn(&socket).map_err(unreadable)? {
        return Err(
            "it is a SEQPACKET socket that does not listen: call listen(2) before, or, in a systemd unit, set \
             Accept=no"
                .to_owned(),
        );
    }
    let address = getsockname(&socket).map_err(unreadable)?;
    let address = SocketAddrUnix::try_from(address).map_err(unreadable)?;
    match address.path() {
        Some(path) => Ok(OsStr::from_bytes(path.to_bytes()).into()),
        None => Err(
            "it has an abstract address, which any user can connect to: bind it to a path instead"
                .to_owned(),
        ),
    }
}

/// Checks that `socket` is connected and carries messages.
///
/// # Errors
///
/// Says what it is instead, and what to do.
pub(crate) fn connected(socket: impl AsFd) -> Result<(), String> {
    check_type(&socket)?;
    if sockopt::socket_acceptconn(&socket).map_err(unreadable)? {
        return Err("it is a socket that listens: serve it with listen_on".to_owned());
    }
    match rustix::net::getpeername(&socket) {
        Ok(_) => Ok(()),
        Err(Errno::NOTCONN) => Err(
            "it is a SEQPACKET socket that is not connected: call connect(2) before, or create it with \
             socketpair(2)"
                .to_owned(),
        ),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether this process's user is the one that clients take for the server of `socket`: the one
/// that called listen(2) last (`SO_PEERCRED`, unix(7)). Calling it again as another user would
/// change whom they see, and whether they trust it.
pub(super) fn is_ours(socket: impl AsFd) -> io::Result<bool> {
    // Not through rustix, whose process ids are never 0: one outside our PID namespace is.
    let listener = getsockopt(&socket, PeerCredentials)?;
    Ok(listener.uid() == geteuid().as_raw())
}

fn check_type(socket: impl AsFd) -> Result<(), String> {
    let family = match sockopt::socket_domain(&socket) {
        Err(Errno::NOTSOCK) => {
            return Err("it is a file that is not a socket: pass a SEQPACKET socket".to_owned());
        }
        family => family.map_err(unreadable)?,
    };
    let kind = sockopt::socket_type(&socket).map_err(unreadable)?;
    if family == AddressFamily::UNIX && kind == SocketType::SEQPACKET {
        return Ok(());
    }
    let family = match family {
        AddressFamily::UNIX => "a local (AF_UNIX)".to_owned(),
        AddressFamily::INET => "an IPv4 (AF_INET)".to_owned(),
        AddressFamily::INET6 => "an IPv6 (AF_INET6)".to_owned(),
        other => format!("an AF_{}", other.as_raw()),
    };
    let kind = match kind {
        SocketType::STREAM => "stream".to_owned(),
        SocketType::DGRAM => "datagram".to_owned(),
        SocketType::SEQPACKET => "SEQPACKET".to_owned(),
        other => format!("type {}", other.as_raw()),
    };
    Err(format!(
        "it is {family} {kind} socket: pass a local SEQPACKET socket (in a systemd unit, \
         ListenSequentialPacket= with a path)"
    ))
}

fn unreadable(error: Errno) -> String {
    format!("it can't be inspected: {error}")
}
