//! Where the server listens.

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use pipe_server::{BindError, ListenerOptions, PipeListener, PipeName};
use pipe_server_cli::exit::Failure;

use crate::options::Options;
#[cfg(target_os = "linux")]
use crate::systemd;

/// The sample's pipe (*Multithreaded Pipe Server*).
const DEFAULT_NAME: &str = "mynamedpipe";

/// Where the server listens.
#[derive(Debug)]
pub(crate) enum Place {
    Name(PipeName),
    /// On a socket that systemd listens on.
    #[cfg(target_os = "linux")]
    Socket(OwnedFd),
}

impl Place {
    /// The one that the options name, or that systemd has passed. Called before this process opens anything.
    #[allow(clippy::unnecessary_wraps, reason = "it fails on Linux")]
    pub(crate) fn find(options: &Options) -> Result<Self, Failure> {
        #[cfg(target_os = "linux")]
        if let Some(socket) = systemd::take_socket(options.fd_name.as_deref())? {
            return match options.pipe_name {
                None => Ok(Self::Socket(socket)),
                Some(_) => Err(Failure::usage(
                    "--pipe-name has no effect on the socket that systemd has passed (LISTEN_FDS): leave it out"
                        .to_owned(),
                )),
            };
        }
        let name = options.pipe_name.clone();
        Ok(Self::Name(name.unwrap_or_else(|| {
            DEFAULT_NAME.parse().expect("it is a name")
        })))
    }

    pub(crate) fn listen(self, options: &ListenerOptions) -> Result<PipeListener, BindError> {
        match self {
            Self::Name(name) => options.bind(name),
            #[cfg(target_os = "linux")]
            Self::Socket(socket) => {
                use pipe_server::os::linux::ListenerOptionsExt as _;

                options.listen_on(socket)
            }
        }
    }

    /// Whether other users can't reach it, whatever its access is: a short name is in a directory of this user.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Name(name) if name.short().is_some())
    }
}
