//! The listening sockets that the kernel reports through sock_diag(7).
//!
//! `/proc/net/unix` has the same sockets, but a path with a newline forges a line there. The crates
//! for netlink are four packages with their own unsafe code, for one request and two attributes.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{SOCK_DIAG, SocketAddrNetlink},
        recv, sendto, socket_with,
    },
};

/// A socket of the kernel's list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListeningSocket {
    /// An absolute path.
    pub(super) path: PathBuf,
    /// The lower half of the inode number of the file that bind(2) created.
    pub(super) inode: u32,
}

/// The SEQPACKET sockets of this network namespace that listen at an absolute path.
pub(super) fn listening_sockets() -> io::Result<Vec<ListeningSocket>> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::DGRAM;
    let netlink = socket_with(AddressFamily::NETLINK, kind, flags, Some(SOCK_DIAG))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&netlink, &request(), SendFlags::empty(), &kernel)?;
    let mut sockets = Vec::new();
    while read_dump(&receive(&netlink)?, &mut sockets)? {}
    Ok(sockets)
}

/// Receives one datagram of any length.
fn receive(netlink: &OwnedFd) -> io::Result<Vec<u8>> {
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, length) = recv(netlink, &mut [0; 0], peek)?;
    let mut datagram = vec![0; length];
    let (received, _) = recv(netlink, &mut datagram[..], RecvFlags::empty())?;
    datagram.truncate(received);
    Ok(datagram)
}

/// A request for all listening sockets with their names and inodes: `struct nlmsghdr` and `struct
/// unix_diag_req` in include/uapi/linux/.
fn request() -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_AND_DUMP: u16 = 0x301;
    const AF_UNIX: u8 = 1;
    const LISTENING: u32 = 1 << 10;
    const SHOW_NAME_AND_VFS: u32 = 0b11;

    let mut request = Vec::new();
    request.extend(40_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_AND_DUMP.to_ne_bytes());
    // The sequence number and the port.
    request.extend([0; 8]);
    // The family, the protocol, and padding.
    request.extend([AF_UNIX, 0, 0, 0]);
    request.extend(LISTENING.to_ne_bytes());
    // The inode of a single socket.
    request.extend([0; 4]);
    request.extend(SHOW_NAME_AND_VFS.to_ne_bytes());
    // The cookie of a single socket.
    request.extend([0xff; 8]);
    request
}

/// Adds the sockets of one datagram to `sockets`, and returns whether another datagram follows.
fn read_dump(datagram: &[u8], sockets: &mut Vec<ListeningSocket>) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;

    let cut = || io::Error::new(io::ErrorKind::InvalidData, "its answer is cut short");
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = u32_at(rest, 0).ok_or_else(cut)? as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16);
        let message = message.ok_or_else(cut)?;
        match u16_at(message, 4).ok_or_else(cut)? {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let number = u32_at(message, 16).ok_or_else(cut)?.wrapping_neg();
                return Err(io::Error::from_raw_os_error(number as i32));
            }
            _ => sockets.extend(socket(&message[16..])),
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(true)
}

/// Reads `struct unix_diag_msg` and its attributes. `None` for a socket that is not a pipe.
fn socket(message: &[u8]) -> Option<ListeningSocket> {
    const SOCK_SEQPACKET: u8 = 5;
    const UNIX_DIAG_NAME: u16 = 0;
    const UNIX_DIAG_VFS: u16 = 1;

    if *message.get(1)? != SOCK_SEQPACKET {
        return None;
    }
    let (mut path, mut inode) = (None, None);
    let mut rest = message.get(16..)?;
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        match u16_at(rest, 2)? {
            UNIX_DIAG_NAME => path = value.split(|&byte| byte == 0).next(),
            UNIX_DIAG_VFS => inode = u32_at(value, 0),
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    // Others are relative to an unknown directory, or names without a file.
    let path = path.map(|path| Path::new(OsStr::from_bytes(path)));
    let path = path.filter(|path| path.is_absolute())?.to_owned();
    Some(ListeningSocket {
        path,
        inode: inode?,
    })
}

/// Messages and attributes begin at multiples of 4 bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = 16 + body.len();
        let mut message = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(aligned(length), 0);
        message
    }

    fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
        let mut body = vec![1, kind, 10, 0];
        body.extend([0; 12]);
        let length = u16::try_from(4 + name.len()).unwrap();
        body.extend(length.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        body.extend(name);
        body.resize(aligned(body.len()), 0);
        body.extend(12_u16.to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(7_u32.to_ne_bytes());
        body.extend([0; 4]);
        message(20, &body)
    }

    #[test]
    fn only_seqpacket_sockets_at_an_absolute_path_are_listed() {
        let mut datagram = entry(5, b"/run/a b\xff\0");
        datagram.extend(entry(1, b"/run/stream\0"));
        datagram.extend(entry(5, b"\0abstract"));
        datagram.extend(entry(5, b"./relative\0"));
        let mut sockets = Vec::new();
        assert!(read_dump(&datagram, &mut sockets).unwrap());
        let path = OsStr::from_bytes(b"/run/a b\xff").into();
        assert_eq!(sockets, [ListeningSocket { path, inode: 7 }]);
        assert!(!read_dump(&message(3, &[0; 4]), &mut sockets).unwrap());
        let error = read_dump(&message(2, &(-2_i32).to_ne_bytes()), &mut sockets).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_an_error_and_no_socket() {
        let datagram = entry(5, b"/run/a\0");
        for length in 1..datagram.len() {
            let mut sockets = Vec::new();
            read_dump(&datagram[..length], &mut sockets).unwrap_err();
            assert_eq!(sockets, []);
        }
        // A message without an end would be read for ever.
        read_dump(&[0; 16], &mut Vec::new()).unwrap_err();
        let mut body = entry(5, b"/run/a\0");
        body[32..34].fill(0);
        let mut sockets = Vec::new();
        assert!(read_dump(&body, &mut sockets).unwrap());
        assert_eq!(sockets, []);
    }
}
