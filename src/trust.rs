//! The servers that a client trusts.

use std::{fmt, io, str::FromStr};

use crate::{
    engine::native::is_own,
    peer::{USER, UserId},
};

/// The servers that a [`Client`](crate::Client) trusts.
///
/// Any local program can take a pipe's name before its server does, and would then receive what is
/// meant for that server. So a client asks the system for the server's user before it sends
/// anything, and disconnects if it does not trust that user.
///
/// Parsed from `system`, `current-user`, `anyone` or a user: a number such as `1000` on Linux, and
/// a SID such as `S-1-5-19` on Windows.
///
/// # Windows
///
/// A server is identified by the owner of its pipe. For a server of this library that is the owner
/// that its token names for new objects: the user, or the Administrators group if the server is
/// elevated. If both sides run as the same user:
///
/// | server | owner of its pipe | client | `System` | `CurrentUser` |
/// |---|---|---|---|---|
/// | plain | the user | plain or elevated | connects | connects |
/// | elevated | Administrators | elevated | connects | connects |
/// | elevated | Administrators | plain | connects | is refused: another administrator may serve it |
/// | LocalService, NetworkService, `NT SERVICE\NAME` | that account | any | is refused | is refused |
///
/// Clients of a service with such an account name its SID: `S-1-5-19`, `S-1-5-20`, or what `sc.exe
/// showsid NAME` prints (`docs/windows-service.md`).
///
/// .NET's `PipeOptions.CurrentUserOnly` compares the owner only with the owner in its own token
/// (`NamedPipeClientStream.Windows.cs`), so there an elevated client refuses a plain server as
/// well.
///
/// # Linux
///
/// A server is identified by the user that it listened as (`SO_PEERCRED`, unix(7)). The directory
/// of a short or [system](crate::PipeName::system) name must also belong to a trusted user, and
/// nobody else may be able to write to it.
///
/// In a user namespace, a user whom it does not [map](UserId::is_unmapped) is trusted only as
/// [`Anyone`](Self::Anyone). That includes root outside of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Servers of this user and of the system. This is the default. The system is root on Linux,
    /// and SYSTEM and Administrators on Windows.
    #[default]
    System,
    /// Servers of this user.
    CurrentUser,
    /// Servers of the given user.
    User(UserId),
    /// Any server. It can read what is sent to it and reply with anything.
    Anyone,
}

impl Trust {
    /// Whether a server of `owner` is trusted.
    pub(crate) fn includes(&self, owner: &UserId) -> io::Result<bool> {
        match self {
            Self::Anyone => Ok(true),
            // It may be any user, even if this process's own user is shown like that.
            _ if owner.is_unmapped() => Ok(false),
            Self::System => Ok(is_system(owner) || is_own(owner)?),
            Self::CurrentUser => is_own(owner),
            Self::User(user) => Ok(owner == user),
        }
    }
}

#[cfg(unix)]
fn is_system(owner: &UserId) -> bool {
    *owner == UserId::Uid(0)
}

/// SYSTEM, and Administrators, which owns the pipes of elevated processes (*Well-known SIDs*).
#[cfg(windows)]
fn is_system(owner: &UserId) -> bool {
    let UserId::Sid(sid) = owner;
    matches!(sid.as_str(), "S-1-5-18" | "S-1-5-32-544")
}

/// Writes the form that is parsed.
impl fmt::Display for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => formatter.write_str("system"),
            Self::CurrentUser => formatter.write_str("current-user"),
            Self::User(user) => user.fmt(formatter),
            Self::Anyone => formatter.write_str("anyone"),
        }
    }
}

/// An error returned when parsing a [`Trust`] fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not say whom to trust: write system, current-user, anyone or {USER}")]
pub struct TrustError {
    text: String,
}

impl FromStr for Trust {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let user = match text {
            "system" => return Ok(Self::System),
            "current-user" => return Ok(Self::CurrentUser),
            "anyone" => return Ok(Self::Anyone),
            user => user.parse(),
        };
        user.map(Self::User).map_err(|_| TrustError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_is_parsed_again() {
        let user = if cfg!(windows) { "S-1-5-19" } else { "1000" };
        for text in ["system", "current-user", "anyone", user] {
            let trust: Trust = text.parse().unwrap();
            assert_eq!(trust.to_string(), text);
        }
    }

    #[test]
    fn anything_else_says_what_to_write() {
        for text in [
            "",
            "nobody",
            "-1",
            "S-1",
            "S-1-",
            "S-1-5-",
            "S-1-5-019",
            "+1000",
            "root",
        ] {
            let error = text.parse::<Trust>().unwrap_err().to_string();
            assert!(error.contains("system, current-user, anyone"), "{error}");
        }
    }

    #[test]
    fn the_system_is_trusted_unless_only_this_user_is() {
        #[cfg(unix)]
        let (system, other) = ([UserId::Uid(0)], UserId::Uid(u32::MAX - 7));
        #[cfg(windows)]
        let (system, other) = (
            ["S-1-5-18", "S-1-5-32-544"].map(|sid| UserId::Sid(sid.to_owned())),
            UserId::Sid("S-1-5-19".to_owned()),
        );
        for owner in &system {
            assert!(Trust::System.includes(owner).unwrap());
            assert!(!Trust::User(other.clone()).includes(owner).unwrap());
        }
        for trust in [Trust::System, Trust::CurrentUser] {
            assert!(!trust.includes(&other).unwrap());
        }
        for trust in [Trust::User(other.clone()), Trust::Anyone] {
            assert!(trust.includes(&other).unwrap());
        }
    }
}
