//! The pipe that the server listens on.

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use pipe_server::{BindError, ListenerOptions, PipeListener, PipeName};
use pipe_server_cli::{exit::Failure, values};

use crate::options::Options;
#[cfg(target_os = "linux")]
use crate::systemd;

/// The sample's pipe (*Multithreaded Pipe Server*).
const DEFAULT_NAME: &str = "mynamedpipe";

/// The pipe to listen on: a name, or a socket that is listened on already.
#[derive(Debug)]
pub(crate) enum PipeSource {
    Name(PipeName),
    /// On a socket that systemd listens on.
    #[cfg(target_os = "linux")]
    Socket(OwnedFd),
}

impl PipeSource {
    /// The one that the options name, or that systemd has passed. Called before this process opens
    /// anything.
    pub(crate) fn find(options: &Options) -> Result<Self, Failure> {
        #[cfg(target_os = "linux")]
        if let Some(socket) = systemd::take_socket(options.fd_name.as_deref())? {
            return match (&options.pipe_name, options.system) {
                (None, false) => Ok(Self::Socket(socket)),
                _ => Err(Failure::usage(
                    "--pipe-name and --system have no effect on the socket that systemd has passed (LISTEN_FDS): \
                     leave them out"
                        .to_owned(),
                )),
            };
        }
        let name = options.pipe_name.clone();
        let name = name.unwrap_or_else(|| DEFAULT_NAME.parse().expect("it is a name"));
        values::pipe_name(name, options.system).map(Self::Name)
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

    /// Whether users other than the server's own may connect, as far as is known.
    pub(crate) fn admits_others(&self, options: &Options) -> bool {
        match self {
            Self::Name(_) => options.admits_others(),
            // Whoever created it decided that.
            #[cfg(target_os = "linux")]
            Self::Socket(_) => true,
        }
    }

    /// What keeps other users out, if the options suggest that they should get in.
    #[cfg(target_os = "linux")]
    pub(crate) fn obstacle(&self, options: &Options) -> Option<&'static str> {
        let Self::Name(name) = self else { return None };
        match (name.short().is_some(), options.admits_others()) {
            (true, true) => Some(
                "other users can't connect, whatever --access says: only this user can enter the directory of a short \
                 name; use --system, or give --pipe-name a path, such as /run/mynamedpipe",
            ),
            (false, false) if options.system => Some(
                "other users can't connect to this pipe of the system: admit them with --access or --socket-group",
            ),
            _ => None,
        }
    }
}
