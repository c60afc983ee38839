//! The name of a pipe, parsed and checked.

use std::{fmt, str::FromStr};

/// The longest pipe name that Windows takes, prefix included, in UTF-16 units
/// (*CreateNamedPipeW function*, `lpName`).
#[cfg(windows)]
const MAX_ADDRESS_UNITS: usize = 256;

/// The longest socket path that Linux takes, in bytes: `sun_path` has 108, one of them for the
/// terminating NUL (unix(7)).
#[cfg(target_os = "linux")]
const MAX_ADDRESS_BYTES: usize = 107;

/// The name of a pipe, checked, and the address that it stands for.
///
/// A short name such as `mynamedpipe` works on every system:
///
/// | system | address of `mynamedpipe` |
/// |---|---|
/// | Windows | `\\.\pipe\mynamedpipe` |
/// | Linux | `$XDG_RUNTIME_DIR/pipe-server/mynamedpipe.pipe`, without that variable `/tmp/pipe-server-UID/mynamedpipe.pipe` |
///
/// So does the full Windows path of a local pipe, `\\.\pipe\mynamedpipe`, which Linux takes for the
/// short name. On Linux a name with a `/` in it is the path of the socket as it stands. On Windows
/// `\\HOST\pipe\NAME` names a pipe of another machine; only a client can use that.
///
/// Windows compares names without regard to case; Linux does not.
///
/// # Examples
///
/// ```
/// use pipe_server::PipeName;
///
/// let short: PipeName = "mynamedpipe".parse()?;
/// let full: PipeName = r"\\.\pipe\mynamedpipe".parse()?;
/// assert_eq!(short, full);
/// assert!(r"my\pipe".parse::<PipeName>().is_err());
/// # Ok::<(), pipe_server::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PipeName {
    address: String,
}

/// Why a text is no pipe name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("a pipe name can't be empty")]
    Empty,
    /// The name holds a character that no pipe name can hold.
    #[error("{character:?} can't be part of the pipe name {name:?}")]
    Character {
        /// The name as it was given.
        name: String,
        /// The first character that can't stand in it.
        character: char,
    },
    /// The address is longer than the system takes.
    #[error(
        "{address} is {length} long; a pipe's address can have {limit} at most: choose a shorter name"
    )]
    TooLong {
        /// The address that the name stands for.
        address: String,
        /// Its length: UTF-16 units on Windows, bytes on Linux.
        length: usize,
        /// The longest address that the system takes, in the same unit.
        limit: usize,
    },
}

impl PipeName {
    /// The address that clients connect to: the pipe's full path on Windows, the socket's path on
    /// Linux.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether this is a pipe of another machine, which can't be served here.
    #[cfg(windows)]
    pub(crate) fn is_remote(&self) -> bool {
        !self.address.starts_with(LOCAL_PREFIX)
    }
}

impl fmt::Display for PipeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)
    }
}

impl AsRef<str> for PipeName {
    fn as_ref(&self) -> &str {
        &self.address
    }
}

impl FromStr for PipeName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let address = address_of(name)?;
        check_length(&address)?;
        Ok(Self { address })
    }
}

/// The prefix of every local pipe's path.
const LOCAL_PREFIX: &str = r"\\.\pipe\";

/// `name` without the prefix of a local pipe's path, if it has one. Windows takes either slash
/// and either case.
fn without_local_prefix(name: &str) -> Option<&str> {
    let prefix = name.get(..LOCAL_PREFIX.len())?;
    let same = prefix
        .chars()
        .map(|c| {
            if c == '/' {
                '\\'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .eq(LOCAL_PREFIX.chars());
    same.then(|| &name[LOCAL_PREFIX.len()..])
}

/// Refuses what can't stand in the last part of a pipe's path.
fn check_short(short: &str, whole: &str) -> Result<(), NameError> {
    if short.is_empty() {
        return Err(NameError::Empty);
    }
    match short
        .chars()
        .find(|&c| c == '\\' || c == '/' || c.is_control())
    {
        Some(character) => Err(NameError::Character {
            name: whole.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

#[cfg(windows)]
fn address_of(name: &str) -> Result<String, NameError> {
    if let Some((host, short)) = remote_parts(name) {
        check_short(host, name)?;
        check_short(short, name)?;
        return Ok(format!(r"\\{host}\pipe\{short}"));
    }
    let short = without_local_prefix(name).unwrap_or(name);
    check_short(short, name)?;
    Ok(format!("{LOCAL_PREFIX}{short}"))
}

/// The host and the short name of `\\HOST\pipe\NAME`, where HOST is another machine.
#[cfg(windows)]
fn remote_parts(name: &str) -> Option<(&str, &str)> {
    let (host, rest) = name.strip_prefix(r"\\")?.split_once('\\')?;
    let (pipe, short) = rest.split_once('\\')?;
    (pipe.eq_ignore_ascii_case("pipe") && host != ".").then_some((host, short))
}

#[cfg(windows)]
fn check_length(address: &str) -> Result<(), NameError> {
    let length = address.encode_utf16().count();
    if length > MAX_ADDRESS_UNITS {
        let address = address.to_owned();
        return Err(NameError::TooLong {
            address,
            length,
            limit: MAX_ADDRESS_UNITS,
        });
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn address_of(name: &str) -> Result<String, NameError> {
    let short = match without_local_prefix(name) {
        Some(short) => short,
        None if name.contains('/') => {
            // A path with a newline would forge the lines that name it.
            return match name.chars().find(|c| c.is_control()) {
                Some(character) => Err(NameError::Character {
                    name: name.to_owned(),
                    character,
                }),
                None => Ok(name.to_owned()),
            };
        }
        None => name,
    };
    check_short(short, name)?;
    Ok(match std::env::var("XDG_RUNTIME_DIR") {
        Ok(runtime_dir) if !runtime_dir.is_empty() => {
            format!(
                "{}/pipe-server/{short}.pipe",
                runtime_dir.trim_end_matches('/')
            )
        }
        _ => format!(
            "/tmp/pipe-server-{}/{short}.pipe",
            rustix::process::getuid().as_raw()
        ),
    })
}

#[cfg(target_os = "linux")]
fn check_length(address: &str) -> Result<(), NameError> {
    let length = address.len();
    if length > MAX_ADDRESS_BYTES {
        let address = address.to_owned();
        return Err(NameError::TooLong {
            address,
            length,
            limit: MAX_ADDRESS_BYTES,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Result<PipeName, NameError> {
        name.parse()
    }

    #[test]
    fn a_short_name_and_its_full_path_are_one_pipe() {
        let short = parse("mynamedpipe").unwrap();
        for full in [
            r"\\.\pipe\mynamedpipe",
            r"\\.\PIPE\mynamedpipe",
            "//./pipe/mynamedpipe",
        ] {
            assert_eq!(parse(full).unwrap(), short, "{full}");
        }
    }

    #[test]
    fn an_address_is_a_name_of_itself() {
        let name = parse("mynamedpipe").unwrap();
        assert_eq!(parse(name.address()).unwrap(), name);
    }

    #[test]
    fn impossible_names_are_refused_and_say_why() {
        assert_eq!(parse(""), Err(NameError::Empty));
        assert_eq!(parse(r"\\.\pipe\"), Err(NameError::Empty));
        for name in ["a\\b", "a\0b", "a\nb", r"\\.\pipe\a\b"] {
            let error = parse(name).unwrap_err();
            assert!(
                matches!(error, NameError::Character { .. }),
                "{name:?}: {error:?}"
            );
        }
        let error = parse(&"n".repeat(300)).unwrap_err();
        assert!(matches!(error, NameError::TooLong { .. }), "{error:?}");
    }

    #[cfg(windows)]
    #[test]
    fn a_pipe_of_another_machine_is_a_name_but_a_remote_one() {
        let name = parse(r"\\host\pipe\x").unwrap();
        assert_eq!(name.address(), r"\\host\pipe\x");
        assert!(name.is_remote());
        assert!(!parse("x").unwrap().is_remote());
        assert!(parse("a/b").is_err());
    }

    #[cfg(windows)]
    #[test]
    fn the_longest_address_has_256_units() {
        assert!(parse(&"n".repeat(256 - LOCAL_PREFIX.len())).is_ok());
        assert!(parse(&"n".repeat(257 - LOCAL_PREFIX.len())).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(parse("./x").unwrap().address(), "./x");
        assert_eq!(parse("/run/x.sock").unwrap().address(), "/run/x.sock");
        for name in ["/a\0b", "/a\nb", "./a\x1b[2Jb"] {
            let error = parse(name).unwrap_err();
            assert!(matches!(error, NameError::Character { .. }), "{error:?}");
        }
    }
}
