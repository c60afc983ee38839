//! The options of the pipe itself.

use clap::Args;
#[cfg(windows)]
use clap::ValueEnum;
use pipe_server::{Access, UserId};
use pipe_server_cli::values::{self, SizeLimit};

use super::at_least_one;

#[cfg(windows)]
const USER: &str = "SID";
#[cfg(not(windows))]
const USER: &str = "UID";

/// The pipe itself.
#[derive(Args, Debug)]
#[command(next_help_heading = "Pipe")]
pub(crate) struct PipeOptions {
    /// Longest message in either direction [default: 64KiB, or 4095 with --engine tokio]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(super) max_message_size: Option<usize>,

    /// How much data the pipe buffers in each direction before a writer waits [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = values::size_u32)]
    pub(super) buffer_size: Option<u32>,

    /// How much the server buffers for all clients together [default: 256MiB]
    ///
    /// Near the limit, clients that do not read their replies are disconnected, those that hold
    /// most first. Others are served as ever, but fewer of their requests are read ahead. On
    /// Linux the default is a quarter of the memory that the process may have (ulimit -v or -d, or
    /// the limit of its control groups), if that is less.
    #[arg(long, value_name = "SIZE|unlimited")]
    pub(super) max_buffered_bytes: Option<SizeLimit>,

    /// How many instances wait for clients, 1 or more [default: 2]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(super) backlog: Option<usize>,

    /// Who may connect: current-user, everyone, sddl:TEXT (Windows) or mode:OCTAL (Linux)
    /// [default: current-user]
    ///
    /// On Windows, everyone grants other users what a client needs, but not the right to create
    /// instances, which is part of the GENERIC_WRITE that most programs ask for. Whether
    /// Windows therefore refuses them is not known; pipe-client does not ask for it. On Linux,
    /// give a path with everyone: other users can't reach the directory of a short name.
    #[arg(long, value_name = "WHO")]
    pub(crate) access: Option<Access>,

    /// Group of the socket, by name or number: its members may connect
    ///
    /// The socket's mode is then 0660, unless --access says everyone or mode:OCTAL. The server has
    /// to be in the group, or be root. Give a path whose directory the group can enter; a
    /// short name is refused. Clients of other users need --trust with this server's user.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    pub(super) socket_group: Option<u32>,

    /// Serve only this user, a number on Linux and a SID on Windows; repeat it for more users
    ///
    /// Users that are not listed are refused and logged, including the server's own and the
    /// system's. A listed user must also be able to connect (--access). On Windows, a client
    /// that is not identified when it connects is refused after its first message, before that
    /// is answered.
    #[arg(long, value_name = USER)]
    pub(crate) allow_user: Vec<UserId>,

    /// Let clients on other machines connect
    #[cfg(windows)]
    #[arg(long)]
    pub(super) allow_remote: bool,

    /// How bytes move under the connections
    #[cfg(windows)]
    #[arg(long, value_name = "ENGINE", value_enum, default_value = "auto")]
    pub(super) engine: Engine,
}

#[cfg(windows)]
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Engine {
    /// The best one there is: overlapped
    Auto,
    /// Tokio's own pipe, with messages of 4095 bytes at most
    Tokio,
    /// Overlapped I/O, with messages of any length
    Overlapped,
}

#[cfg(windows)]
impl From<Engine> for pipe_server::os::windows::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::Tokio => Self::Tokio,
            Engine::Overlapped => Self::Overlapped,
        }
    }
}

/// The id of a group, given by its name or as a number.
#[cfg(target_os = "linux")]
fn group_id(text: &str) -> Result<u32, String> {
    // As chown(1): the name of a group may be a number too.
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => return Ok(group.gid.as_raw()),
        Ok(None) => {}
        Err(error) => return Err(format!("groups can't be looked up: {error}; give a number")),
    }
    text.parse()
        .map_err(|_| "there is no such group: give one of getent group, or a number".to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_a_name_or_a_number() {
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(group_id("54321"), Ok(54_321));
        assert!(group_id("no such group").is_err());
        assert!(group_id("-1").is_err());
    }
}
