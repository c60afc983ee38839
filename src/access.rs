//! The clients that may connect.

use std::{fmt, str::FromStr};

/// The clients that may connect to a pipe.
///
/// Parsed from `current-user`, `everyone`, on Windows `sddl:D:P(A;;GA;;;OW)(A;;0x12019b;;;AU)` and
/// on Linux `mode:0660`. `os::windows::AccessExt` and `os::linux::AccessExt` create the last two.
///
/// # Windows
///
/// The clients that may connect, with the documentation it follows from. The tests cover the first
/// four rows, and only on a model of Windows (`docs/wine.md`); the others are untested.
///
/// | client | `CurrentUser` | `Everyone` | source |
/// |---|---|---|---|
/// | the same user, also when client or server is elevated or logged on through SSH | yes | yes | the list names the user's SID; objects without a label have medium integrity (*Mandatory Integrity Control*) |
/// | another user | no | yes, see [`Everyone`](Self::Everyone) | *Named Pipe Security and Access Rights* |
/// | LocalSystem | yes | yes | the list names SYSTEM |
/// | LocalService, NetworkService, a service as `NT SERVICE\NAME` | no | yes | users of their own (*LocalService Account*, *Service Accounts*) |
/// | a process of low integrity | no | no | it may not write to an object without a label (*Mandatory Integrity Control*); an access list with `S:(ML;;NW;;;LW)` allows it |
/// | an AppContainer | no | no | it needs an entry for its package or for all packages (*AppContainer Isolation*), and so an access list of its own |
/// | an anonymous logon | no | no | by default, Everyone does not include it (*Security identifiers*) |
/// | on another machine | no | no | `PIPE_REJECT_REMOTE_CLIENTS`, unless remote clients are allowed |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// The user that this process runs as, and nobody else. This is the default.
    ///
    /// On Windows the access list gives this user and SYSTEM all rights. The system's default list
    /// lets everyone read, which would let any local user occupy instances (*Named Pipe
    /// Security and Access Rights*). On Linux the socket's mode is 0600, or 0660 with a
    /// `socket_group` (`os::linux`); root can always connect.
    #[default]
    CurrentUser,
    /// Every user of this machine.
    ///
    /// On Windows other users get only the rights that a client needs (0x12019b): reading and
    /// writing data and attributes, `READ_CONTROL` and `SYNCHRONIZE`. `GENERIC_WRITE`, which
    /// most programs request, also contains the right to create instances. With it any user
    /// could impersonate the server, so it is not granted. ReactOS removes that right from what
    /// a client requests (`NpCreateClientEnd`). Whether Windows does has not been observed;
    /// `tests/windows_facts.rs` checks it. If it does not, such programs of other
    /// users are refused. Clients of this library do not request it.
    ///
    /// On Linux the socket's mode is 0666. Its directory must let other users through as well. That
    /// of a short name does not, so use the socket's path.
    Everyone,
    /// The clients that an access list of Windows or a mode of Linux lets in: from
    /// `os::windows::AccessExt::sddl` or `os::linux::AccessExt::mode`.
    Custom(CustomAccess),
}

/// An access list of Windows, or a mode of Linux, in an [`Access`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomAccess {
    #[cfg(windows)]
    pub(crate) sddl: String,
    #[cfg(unix)]
    pub(crate) mode: u32,
}

impl CustomAccess {
    #[cfg(windows)]
    pub(crate) fn sddl(sddl: String) -> Access {
        Access::Custom(Self { sddl })
    }

    #[cfg(unix)]
    pub(crate) fn mode(mode: u32) -> Access {
        Access::Custom(Self { mode })
    }
}

/// Writes the form that is parsed.
impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CurrentUser => formatter.write_str("current-user"),
            Self::Everyone => formatter.write_str("everyone"),
            #[cfg(windows)]
            Self::Custom(CustomAccess { sddl }) => write!(formatter, "sddl:{sddl}"),
            #[cfg(unix)]
            Self::Custom(CustomAccess { mode }) => write!(formatter, "mode:{mode:04o}"),
        }
    }
}

/// An error returned when parsing an [`Access`] fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not say who may connect: write {EXPECTED}")]
pub struct AccessError {
    text: String,
}

#[cfg(windows)]
const EXPECTED: &str =
    "current-user, everyone or sddl:DESCRIPTOR, such as sddl:D:P(A;;GA;;;OW)(A;;0x12019b;;;AU)";
#[cfg(unix)]
const EXPECTED: &str = "current-user, everyone or mode:OCTAL, such as mode:0660";

impl FromStr for Access {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        match text {
            "current-user" => return Ok(Self::CurrentUser),
            "everyone" => return Ok(Self::Everyone),
            _ => {}
        }
        #[cfg(windows)]
        if let Some(descriptor) = text.strip_prefix("sddl:") {
            return Ok(CustomAccess::sddl(descriptor.to_owned()));
        }
        #[cfg(unix)]
        if let Some(octal) = text.strip_prefix("mode:") {
            // `from_str_radix` also accepts a sign.
            let mode = u32::from_str_radix(octal, 8);
            if let (Ok(mode @ ..=0o777), false) = (mode, octal.starts_with('+')) {
                return Ok(CustomAccess::mode(mode));
            }
        }
        Err(AccessError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parsed_and_anything_else_says_what_to_write() {
        assert_eq!("current-user".parse(), Ok(Access::CurrentUser));
        assert_eq!("everyone".parse(), Ok(Access::Everyone));
        let error = "nobody".parse::<Access>().unwrap_err();
        assert!(
            error.to_string().contains("current-user, everyone"),
            "{error}"
        );
    }

    #[test]
    fn what_is_displayed_is_parsed_again() {
        let of_the_system = if cfg!(windows) {
            "sddl:D:P(A;;GA;;;SY)"
        } else {
            "mode:0060"
        };
        for text in ["current-user", "everyone", of_the_system] {
            let access: Access = text.parse().unwrap();
            assert_eq!(access.to_string(), text);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_mode_is_octal() {
        assert_eq!("mode:0660".parse(), Ok(CustomAccess::mode(0o660)));
        assert!("mode:0999".parse::<Access>().is_err());
        assert!("mode:7777".parse::<Access>().is_err());
        assert!("mode:+660".parse::<Access>().is_err());
    }
}
