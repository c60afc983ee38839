//! The other side of a connection.

use std::{fmt, str::FromStr};

/// The process and the user on the other side of a connection. [`os`](crate::os) adds what one
/// system knows.
///
/// # Windows
///
/// A client is identified by the user of its token, and a server by the owner of its pipe. The tests
/// cover the first three rows on a model of Windows; the others have
/// not been observed on Windows.
///
/// | client | its [`user`](Self::user) | source |
/// |---|---|---|
/// | elevated or not, and logged on through SSH or not | the same SID | elevation changes groups and privileges (*How User Account Control works*) |
/// | LocalSystem | `S-1-5-18` | *Well-known SIDs*, as the next row |
/// | LocalService, NetworkService | `S-1-5-19`, `S-1-5-20` | shared by all services of the account |
/// | of this library, or without security quality of service, as most programs connect | known once a message has been received | *ImpersonateNamedPipeClient function* |
/// | with static tracking | known when it connects, or not at all | `NpListen` of ReactOS: see `tests/windows_facts.rs` |
/// | of low integrity, or in an AppContainer | the user's SID, as of any process of that user: neither the level nor the package is known | *Mandatory Integrity Control*; `TokenAppContainerSid` in *TOKEN_INFORMATION_CLASS* |
/// | with `SECURITY_ANONYMOUS` | asking for the peer fails | *Impersonation Levels* |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub(crate) process_id: u32,
    pub(crate) user: UserId,
    #[cfg(target_os = "linux")]
    pub(crate) group_id: u32,
    #[cfg(target_os = "linux")]
    pub(crate) socket: socket::PeerSocket,
    #[cfg(windows)]
    pub(crate) session_id: u32,
}

impl Peer {
    /// Creates a peer that never connected, for a [`Request`](crate::Request) in a test. Its group
    /// or session is 0.
    #[must_use]
    pub fn new(process_id: u32, user: UserId) -> Self {
        Self {
            process_id,
            user,
            #[cfg(target_os = "linux")]
            group_id: 0,
            #[cfg(target_os = "linux")]
            socket: socket::PeerSocket::default(),
            #[cfg(windows)]
            session_id: 0,
        }
    }

    /// The process that connected. Suitable for a log but not for a decision: the id is reused once
    /// the process has ended, and the handle or socket may have been passed to another process.
    ///
    /// On Linux this is 0 if the process is not visible from this one: it runs in a PID namespace
    /// that is not below ours, such as that of the host or of another container
    /// (pid_namespaces(7)).
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process_id
    }

    /// The user that the process ran as when it connected.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }
}

/// The socket of a peer.
#[cfg(target_os = "linux")]
pub(crate) mod socket {
    use std::{
        fmt, io,
        os::fd::AsFd,
        sync::{Arc, Weak},
    };

    type DynSocket = dyn AsFd + Send + Sync;

    /// The socket that a peer is connected to, to ask the system more about it later. Weak, so that
    /// code that keeps a peer does not keep its connection open.
    #[derive(Clone, Default)]
    pub(crate) struct PeerSocket(Option<Weak<DynSocket>>);

    impl PeerSocket {
        pub(crate) fn new(socket: Weak<DynSocket>) -> Self {
            Self(Some(socket))
        }

        /// Returns the socket while its connection is open.
        pub(crate) fn get(&self) -> io::Result<Arc<DynSocket>> {
            let Self(Some(socket)) = self else {
                let problem = "the peer is not connected through a socket";
                return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
            };
            let closed =
                || io::Error::new(io::ErrorKind::NotConnected, "the connection has closed");
            socket.upgrade().ok_or_else(closed)
        }
    }

    /// Peers are compared by what is known of them.
    impl PartialEq for PeerSocket {
        fn eq(&self, _: &Self) -> bool {
            true
        }
    }

    impl Eq for PeerSocket {}

    impl fmt::Debug for PeerSocket {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("..")
        }
    }
}

/// A user, as the system identifies it.
///
/// Parsed from a number such as `1000` on Linux, and from a SID such as `S-1-5-19` on Windows. Its
/// `Display` writes the same form.
///
/// [`Peer::current`] has the user of this process. The system is the user `0` on Linux and
/// `S-1-5-18` on Windows, where each administrator has a SID of their own.
///
/// # Examples
///
/// Serves this user and the users of a configuration file:
///
/// ```
/// use pipe_server::{BoxError, Bytes, Peer, PipeListener, UserId, serve};
///
/// async fn run(listener: PipeListener, configured: &str) -> Result<(), BoxError> {
///     let mut users: Vec<UserId> = vec![Peer::current()?.user().clone()];
///     for user in configured.lines() {
///         users.push(user.parse()?);
///     }
///     serve(listener, |request: Bytes| async move { request })
///         .authorize(move |peer| {
///             let is_served = users.contains(peer.user());
///             async move { is_served }
///         })
///         .await;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UserId {
    /// A security identifier in string form, such as `S-1-5-18`.
    #[cfg(windows)]
    Sid(String),
    /// A user id.
    #[cfg(unix)]
    Uid(u32),
}

impl UserId {
    /// Whether this stands for no user in particular, so that it can't be trusted.
    ///
    /// In a Linux user namespace, such as that of a container, every user whom the namespace does
    /// not map appears as one and the same user, usually 65534 (`/proc/sys/fs/overflowuid`,
    /// user_namespaces(7)). Always `false` where all users are mapped, and on other systems.
    #[must_use]
    pub fn is_unmapped(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            let Self::Uid(uid) = self;
            unmapped::stands_for_others(*uid)
        }
        #[cfg(not(target_os = "linux"))]
        false
    }
}

/// The user that stands for all those whom this process's user namespace does not map.
#[cfg(target_os = "linux")]
mod unmapped {
    use std::{fs, sync::OnceLock};

    pub(super) fn stands_for_others(uid: u32) -> bool {
        static OVERFLOW: OnceLock<u32> = OnceLock::new();
        let overflow = *OVERFLOW.get_or_init(|| {
            let number = fs::read_to_string("/proc/sys/fs/overflowuid");
            // The kernel's default (`DEFAULT_OVERFLOWUID`).
            number
                .map_or(None, |id| id.trim().parse().ok())
                .unwrap_or(65_534)
        });
        // Read each time: a process can enter another namespace.
        uid == overflow
            && fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_complete(&map))
    }

    /// Whether a namespace with this map maps every user, as the initial one does.
    pub(super) fn is_complete(map: &str) -> bool {
        let length = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
        let lengths: u64 = map.lines().filter_map(length).sum::<u64>();
        lengths >= u64::from(u32::MAX)
    }
}

/// Writes the form that is parsed.
impl fmt::Display for UserId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(windows)]
            Self::Sid(sid) => sid.fmt(formatter),
            #[cfg(unix)]
            Self::Uid(uid) => uid.fmt(formatter),
        }
    }
}

/// An error returned when parsing a [`UserId`] fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a user: write {USER}")]
pub struct UserIdError {
    text: String,
}

#[cfg(windows)]
pub(crate) const USER: &str = "a user's SID, such as S-1-5-19";
#[cfg(unix)]
pub(crate) const USER: &str = "a user's number, such as 1000";

impl FromStr for UserId {
    type Err = UserIdError;

    fn from_str(text: &str) -> Result<Self, UserIdError> {
        user_id(text).ok_or_else(|| UserIdError {
            text: text.to_owned(),
        })
    }
}

#[cfg(unix)]
fn user_id(text: &str) -> Option<UserId> {
    // `parse` accepts a sign as well.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().map(UserId::Uid))?
}

/// Only in the form in which the system writes it, since SIDs are compared as text.
#[cfg(windows)]
fn user_id(text: &str) -> Option<UserId> {
    let numbers = text.strip_prefix("S-1-")?;
    let all = numbers.split('-').all(|number| {
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        digits && (number == "0" || !number.starts_with('0'))
    });
    (all && numbers.contains('-')).then(|| UserId::Sid(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_initial_user_namespace_maps_everyone() {
        use unmapped::is_complete;

        assert!(is_complete("         0          0 4294967295\n"));
        assert!(is_complete("0 0 1000\n1000 1000 4294966295\n"));
        // Containers, and `unshare --user` before a map is written.
        for map in [
            "0 1000 1\n",
            "0 100000 65536\n",
            "0 0 1\n1 100000 65536\n",
            "",
        ] {
            assert!(!is_complete(map), "{map}");
        }
        assert!(!UserId::Uid(0).is_unmapped());
    }

    #[test]
    fn a_user_is_parsed_and_anything_else_says_what_to_write() {
        #[cfg(unix)]
        let (text, user) = ("1000", UserId::Uid(1000));
        #[cfg(windows)]
        let (text, user) = ("S-1-5-19", UserId::Sid("S-1-5-19".to_owned()));
        assert_eq!(text.parse(), Ok(user));
        for wrong in [
            "",
            "root",
            "+1000",
            "-1",
            "4294967296",
            "S-1-5-",
            "S-1-5-019",
        ] {
            let error = wrong.parse::<UserId>().unwrap_err().to_string();
            assert!(error.contains("such as"), "{error}");
        }
    }
}
