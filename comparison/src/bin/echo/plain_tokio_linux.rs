//! The loop that a user of Tokio would write for `SOCK_SEQPACKET`: sockets in `AsyncFd`, and a task
//! per client that receives a message and sends it back. No handler, no timeouts, no log, no
//! graceful shutdown; a message over LONGEST is truncated.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, listen, recv, send, socket_with, sockopt,
};
use tokio::io::{Interest, unix::AsyncFd};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The same as pipe-server's.
const QUEUE_LENGTH: i32 = 1024;

/// What the kernel reserves of the send buffer.
const SEND_OVERHEAD: usize = 32;

/// Runs `echo` for each client, in a task of its own.
pub(crate) fn serve<F>(
    address: &str,
    longest: usize,
    echo: impl Fn(AsyncFd<OwnedFd>, usize) -> F,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    crate::runtime()?.block_on(async {
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        bind(&listener, &SocketAddrUnix::new(address)?)?;
        listen(&listener, QUEUE_LENGTH)?;
        let listener = register(listener)?;
        crate::announce(address)?;
        loop {
            let accept = |listener: &OwnedFd| Ok(accept_with(listener, FLAGS)?);
            let socket = listener.async_io(Interest::READABLE, accept).await?;
            if sockopt::socket_send_buffer_size(&socket)? < longest + SEND_OVERHEAD {
                sockopt::set_socket_send_buffer_size(&socket, longest + SEND_OVERHEAD)?;
            }
            tokio::spawn(echo(register(socket)?, longest));
        }
    })
}

pub(crate) async fn echo(socket: AsyncFd<OwnedFd>, longest: usize) -> io::Result<()> {
    let mut buffer = vec![0; longest];
    loop {
        let receive = |socket: &OwnedFd| Ok(recv(socket, &mut buffer[..], RecvFlags::empty())?.0);
        let length = socket.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Ok(());
        }
        let send = |socket: &OwnedFd| Ok(send(socket, &buffer[..length], SendFlags::NOSIGNAL)?);
        socket.async_io(Interest::WRITABLE, send).await?;
    }
}

#[allow(
    deprecated,
    reason = "the replacement is unsafe. Its requirement holds here: the descriptor stays the same \
              until the socket is dropped"
)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(socket)
}
