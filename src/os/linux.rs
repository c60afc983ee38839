//! Linux-specific extensions.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use super::sealed::Sealed;
use crate::{
    access::{Access, CustomAccess},
    client::{Client, ClientOptions},
    engine::native,
    error::{BindError, ConnectError, OutOfRange},
    listener::{ListenerOptions, PipeListener},
    name::PipeName,
    peer::Peer,
};

/// Linux-specific extensions to [`Access`].
///
/// # Examples
///
/// ```
/// use pipe_server::{Access, ListenerOptions, os::linux::AccessExt as _};
///
/// let options = ListenerOptions::new().access(Access::mode(0o660));
/// ```
pub trait AccessExt: Sealed {
    /// The clients that this mode of the socket lets in, regardless of the umask; 0 to 0o777, or
    /// `bind` fails. Connecting requires write permission (unix(7)).
    fn mode(mode: u32) -> Self;

    /// The mode, if there is one.
    fn as_mode(&self) -> Option<u32>;
}

impl AccessExt for Access {
    fn mode(mode: u32) -> Self {
        CustomAccess::mode(mode)
    }

    fn as_mode(&self) -> Option<u32> {
        match self {
            Self::Custom(access) => Some(access.mode),
            Self::CurrentUser | Self::Everyone => None,
        }
    }
}

/// Linux-specific extensions to [`ListenerOptions`].
pub trait ListenerOptionsExt: Sealed {
    /// The group of the socket file, by its id; `None`, the default, for the group that the system
    /// gives it.
    ///
    /// The members of the group may connect: with [`Access::CurrentUser`] the socket's mode is then
    /// 0660. With another `Access` the mode is what that says. Clients of other users have to
    /// trust this user: see [`ClientOptions::trust`].
    ///
    /// Only root may choose any group; others, one that this process is in (chown(2)). A short name
    /// is refused with [`BindError::Option`], since only this user can enter its directory.
    #[must_use]
    fn socket_group(self, group_id: impl Into<Option<u32>>) -> Self;

    /// Serves a listening socket that was created elsewhere: by a service manager, as in systemd's
    /// socket activation, or by a parent process. It is of type `SOCK_SEQPACKET` and bound to a
    /// path.
    ///
    /// Access was decided where the socket was created. Its path is never removed, and the clients
    /// in its queue stay there when the listener is dropped, for whoever else holds the socket.
    /// The socket is made non-blocking, which all who hold it share.
    ///
    /// To clients, the server is the user that called listen(2) on it, usually root for a socket of
    /// systemd. To keep it so, a process of another user does not change the length of the
    /// queue: at `max_instances`, further clients then wait in it, as many as was set where it
    /// was created (`Backlog=`), instead of seeing a busy pipe.
    ///
    /// # Errors
    ///
    /// [`BindError::Descriptor`] says what the descriptor is instead. [`BindError::Option`] for an
    /// `access` or a `socket_group`, which have no effect here, and for an option that is out
    /// of range.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::os::fd::OwnedFd;
    /// use pipe_server::{ListenerOptions, os::linux::ListenerOptionsExt as _};
    ///
    /// fn serve_inherited(socket: OwnedFd) -> Result<(), pipe_server::BindError> {
    ///     let listener = ListenerOptions::new().max_instances(4).listen_on(socket)?;
    ///     println!("listening on {}", listener.path().display());
    ///     Ok(())
    /// }
    /// # let (one, _other) = std::os::unix::net::UnixStream::pair()?;
    /// # assert!(serve_inherited(one.into()).is_err());
    /// # Ok(()) }
    /// ```
    fn listen_on(&self, socket: OwnedFd) -> Result<PipeListener, BindError>;
}

impl ListenerOptionsExt for ListenerOptions {
    fn socket_group(mut self, group_id: impl Into<Option<u32>>) -> Self {
        self.for_engine.socket_group = group_id.into();
        self
    }

    fn listen_on(&self, socket: OwnedFd) -> Result<PipeListener, BindError> {
        self.check()?;
        self.check_no_access()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BindError::NoRuntime);
        }
        let path = native::listening(&socket).map_err(|problem| BindError::Descriptor {
            descriptor: socket.as_raw_fd(),
            problem,
        })?;
        let name = PipeName::at(path.as_os_str())?;
        self.listen(&name, &path, true, |telemetry| {
            native::listen_on(socket, &self.for_engine, telemetry)
        })
    }
}

impl ListenerOptions {
    /// Refuses what was decided where the socket was created.
    fn check_no_access(&self) -> Result<(), OutOfRange> {
        let problem = "has no effect on a socket that was created elsewhere: set it there (in a systemd unit, \
                       SocketMode=, SocketUser= and SocketGroup=)";
        if self.for_engine.access != Access::CurrentUser {
            return Err(OutOfRange::new("access", problem));
        }
        if self.for_engine.socket_group.is_some() {
            return Err(OutOfRange::new("socket_group", problem));
        }
        Ok(())
    }
}

/// Linux-specific extensions to [`ClientOptions`].
pub trait ClientOptionsExt: Sealed {
    /// Talks on a connected socket that was created elsewhere: one of a socketpair(2), or one that
    /// another process has connected and passed on. It is of type `SOCK_SEQPACKET`.
    ///
    /// The server is the user that called listen(2), or socketpair(2). It is checked against
    /// [`trust`](ClientOptions::trust). [`Client::into_connection`] makes a connection of either
    /// end.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Descriptor`] says what the descriptor is instead; others as for
    /// [`ClientOptions::connect`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use pipe_server::{ClientOptions, os::linux::ClientOptionsExt as _};
    /// use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    ///
    /// let (one, other) =
    ///     socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    /// let mut one = ClientOptions::new().connect_on(one)?;
    /// let mut other = ClientOptions::new().connect_on(other)?;
    /// one.send("hello").await?;
    /// assert_eq!(other.recv().await?.unwrap(), "hello");
    /// # Ok(()) }
    /// ```
    fn connect_on(&self, socket: OwnedFd) -> Result<Client, ConnectError>;
}

impl ClientOptionsExt for ClientOptions {
    fn connect_on(&self, socket: OwnedFd) -> Result<Client, ConnectError> {
        let sizes = native::client_sizes(self.max_message_size)?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(ConnectError::NoRuntime);
        }
        let descriptor = socket.as_raw_fd();
        native::connected(&socket).map_err(|problem| ConnectError::Descriptor {
            descriptor,
            problem,
        })?;
        let address = format!("descriptor {descriptor}");
        let channel = native::connect_on(socket, sizes)
            .map_err(|error| ConnectError::open(address.clone(), error))?;
        self.client(&address, channel, sizes)
    }
}

/// Linux-specific extensions to [`Peer`].
///
/// The supplementary groups of the process (`SO_PEERGROUPS`) are left out: neither rustix nor nix
/// reads them, and this library has no unsafe code on Linux.
pub trait PeerExt: Sealed {
    /// The effective group id of the process when it connected (`SO_PEERCRED`).
    fn group_id(&self) -> u32;

    /// Opens a descriptor of the process that connected (`SO_PEERPIDFD`), on Linux 6.5 and later.
    ///
    /// Unlike [`process_id`](Peer::process_id), a descriptor never stands for another process, not
    /// even after this one has ended: a signal that is sent through it reaches this process or
    /// none, and it is readable once the process has ended (pidfd_open(2)). The process may have
    /// passed its socket to another one, which then sends the messages.
    ///
    /// Each call opens a descriptor, on the connection that this peer was returned for. So it works
    /// only while that is open, in `authorize` and in a handler for example, and a server that does
    /// not call it has no more descriptors than connections. The peer of a server is the process
    /// that called listen(2).
    ///
    /// # Errors
    ///
    /// The error is of the kind [`Unsupported`](io::ErrorKind::Unsupported) on older kernels and for
    /// a peer in memory, and [`NotConnected`](io::ErrorKind::NotConnected) once the connection has
    /// closed. Otherwise it is the system's: some kernels open no descriptor of a process that has
    /// ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::future::IntoFuture;
    /// use pipe_server::{Client, Peer, PipeListener, os::linux::PeerExt as _, serve};
    /// use rustix::process::{Signal, pidfd_send_signal};
    ///
    /// async fn hang_up(peer: Peer, _request: String) -> std::io::Result<String> {
    ///     pidfd_send_signal(peer.pidfd()?, Signal::HUP)?;
    ///     Ok("sent".to_owned())
    /// }
    /// # let name = format!("pidfd-example-{}", std::process::id());
    /// # tokio::spawn(serve(PipeListener::bind(&name)?, hang_up).into_future());
    /// # Ok(()) }
    /// ```
    fn pidfd(&self) -> io::Result<OwnedFd>;
}

impl PeerExt for Peer {
    fn group_id(&self) -> u32 {
        self.group_id
    }

    fn pidfd(&self) -> io::Result<OwnedFd> {
        let socket = self.socket.get()?;
        native::peer_pidfd(&*socket)
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_its_group() {
        let group = rustix::process::getegid().as_raw();
        assert_eq!(Peer::current().unwrap().group_id(), group);
    }
}
