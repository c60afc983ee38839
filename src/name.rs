//! The name of a pipe, parsed and validated.

use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The longest pipe name on Windows, including the prefix, in UTF-16 units (*CreateNamedPipeW
/// function*, `lpName`).
#[cfg(windows)]
const MAX_ADDRESS_LENGTH: usize = 256;

/// The longest socket path on Linux, in bytes: `sun_path` has 108, one of them for the terminating
/// NUL (unix(7)).
#[cfg(unix)]
const MAX_ADDRESS_LENGTH: usize = 107;

/// The directory of system names. No environment changes it.
#[cfg(unix)]
const SYSTEM_DIRECTORY: &str = "/run/pipe-server";

/// The validated name of a pipe: a short name or a path.
///
/// A short name such as `mynamedpipe` works on every system. Its path depends on the system and, on
/// Linux, on the environment when the pipe is bound or connected to:
///
/// | system | path of `mynamedpipe` |
/// |---|---|
/// | Windows | `\\.\pipe\mynamedpipe` |
/// | Linux | `$XDG_RUNTIME_DIR/pipe-server/mynamedpipe.pipe`, without that variable `/tmp/pipe-server-UID/mynamedpipe.pipe` |
///
/// So on Linux users do not meet at a short name, nor does a service meet a login session. They do
/// at a [system name](Self::system).
///
/// The full path of a local Windows pipe, `\\.\pipe\mynamedpipe` or `\\?\pipe\mynamedpipe`, is the
/// short name on every system. On Linux a name that contains a `/` is the path of the socket, used
/// unchanged; write `./mypipe` for one in the current directory, which is served by its absolute
/// path. On Windows `\\HOST\pipe\NAME` names
/// a pipe on another machine, which can be connected to but not served.
///
/// On Windows a backslash may separate components of a name, none of which may be empty, `.` or
/// `..`. A prefix can have a meaning to the system: processes in an AppContainer can only use
/// `LOCAL\NAME`, and administrators alone can create `ProtectedPrefix\Administrators\NAME`. Linux
/// has no such names, and refuses the backslash rather than serve a pipe that means less there.
///
/// Windows ignores case in names; Linux does not.
///
/// A function that takes a name accepts any type that converts to one: `PipeName`, `&str`,
/// `String`, `&Path`, `PathBuf`, `&OsStr` and `OsString`. A path on Linux need not be UTF-8; a
/// short name must be. Control characters are not allowed.
///
/// # Examples
///
/// ```
/// use pipe_server::PipeName;
///
/// let short: PipeName = "mynamedpipe".parse()?;
/// let full: PipeName = r"\\.\pipe\mynamedpipe".parse()?;
/// assert_eq!(short, full);
/// assert_eq!(full.short(), Some("mynamedpipe"));
/// assert_eq!(r"LOCAL\mypipe".parse::<PipeName>().is_ok(), cfg!(windows));
/// # Ok::<(), pipe_server::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PipeName {
    /// The full path.
    #[cfg(windows)]
    address: String,
    #[cfg(unix)]
    location: Location,
}

/// The location of the socket.
#[cfg(unix)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Location {
    /// A name in this user's directory of pipes.
    Short(String),
    /// A name in the system's directory of pipes.
    System(String),
    Path(PathBuf),
}

/// An error returned when parsing a [`PipeName`] fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("a pipe name can't be empty")]
    Empty,
    /// The name contains a character that is not allowed.
    #[error("{character:?} can't be part of the pipe name {name:?}")]
    #[non_exhaustive]
    Character {
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The name is not Unicode. Only the path of a Linux socket may be something else.
    #[error("the pipe name {name:?} is not Unicode")]
    #[non_exhaustive]
    NotUnicode {
        /// The name as given.
        name: OsString,
    },
    /// The address is longer than the system allows.
    #[error("{address} has length {length}, over the limit of {limit}: choose a shorter name")]
    #[non_exhaustive]
    TooLong {
        /// The address of the pipe.
        address: String,
        /// The length of the address: UTF-16 units on Windows, bytes on Linux.
        length: usize,
        /// The longest address that the system allows, in the same unit.
        limit: usize,
    },
}

/// For a [`PipeName`], which converts to itself without an error.
impl From<Infallible> for NameError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl PipeName {
    /// The pipe `name` of the system, where a system service and the clients of all users meet.
    /// `name` is a short name.
    ///
    /// On Linux its path is `/run/pipe-server/NAME.pipe`, whatever the environment. The directory
    /// belongs to root, which creates it when it serves such a name, or to the user of a
    /// service whose unit says `RuntimeDirectory=pipe-server`. Everyone can enter it:
    /// [`Access`](crate::Access) decides who may connect.
    ///
    /// On Windows all short names are the system's, and this is one.
    ///
    /// # Errors
    ///
    /// [`NameError`] if `name` is empty, too long, or contains a slash or a control character.
    ///
    /// # Examples
    ///
    /// ```
    /// use pipe_server::PipeName;
    ///
    /// let name = PipeName::system("mynamedpipe")?;
    /// # #[cfg(target_os = "linux")]
    /// assert_eq!(name.to_string(), "/run/pipe-server/mynamedpipe.pipe");
    /// assert!(PipeName::system("/run/mynamedpipe").is_err());
    /// # Ok::<(), pipe_server::NameError>(())
    /// ```
    pub fn system(name: &str) -> Result<Self, NameError> {
        let short = short_name(name)?;
        #[cfg(windows)]
        let name = parse(short)?;
        #[cfg(unix)]
        let name = Self {
            location: Location::System(short.to_owned()),
        };
        name.resolve()?;
        Ok(name)
    }

    /// The short name, or `None` for a path, a system name on Linux or a pipe on another machine.
    #[must_use]
    pub fn short(&self) -> Option<&str> {
        #[cfg(windows)]
        return self.address.strip_prefix(LOCAL_PREFIX);
        #[cfg(unix)]
        match &self.location {
            Location::Short(short) => Some(short),
            Location::System(_) | Location::Path(_) => None,
        }
    }

    /// The path of the pipe: its full path on Windows, the socket's path on Linux.
    ///
    /// On Linux the path of a short name depends on the current environment.
    /// [`PipeListener::path`](crate::PipeListener::path) is the one that was bound.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        #[cfg(windows)]
        return PathBuf::from(&self.address);
        #[cfg(unix)]
        match &self.location {
            Location::Short(short) => directory().join(format!("{short}.pipe")),
            Location::System(short) => Path::new(SYSTEM_DIRECTORY).join(format!("{short}.pipe")),
            Location::Path(path) => path.clone(),
        }
    }

    /// Whether it is in the system's directory of pipes.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_system(&self) -> bool {
        matches!(self.location, Location::System(_))
    }

    /// The name of the socket at `path`, which need not contain a `/`.
    #[cfg(unix)]
    pub(crate) fn at(path: &OsStr) -> Result<Self, NameError> {
        let name = path.to_string_lossy();
        // A path with a newline could forge the lines that contain it.
        refuse(&name, &name, char::is_control)?;
        check_length(path)?;
        let location = Location::Path(PathBuf::from(path));
        Ok(Self { location })
    }

    /// The path, if it is not too long for the system.
    pub(crate) fn resolve(&self) -> Result<PathBuf, NameError> {
        let path = self.to_path();
        check_length(path.as_os_str())?;
        Ok(path)
    }

    /// The path to serve. A relative one is made absolute if the system allows that, because others
    /// look for a socket by the path that it was bound to: systemd-tmpfiles removes old sockets
    /// that it can't find in use.
    pub(crate) fn resolve_absolute(&self) -> Result<PathBuf, NameError> {
        let path = self.resolve()?;
        #[cfg(unix)]
        if path.is_relative() {
            let absolute = std::path::absolute(&path).ok();
            let absolute = absolute.filter(|absolute| Self::at(absolute.as_os_str()).is_ok());
            return Ok(absolute.unwrap_or(path));
        }
        Ok(path)
    }

    /// Whether this is a pipe on another machine, which can't be served here.
    pub(crate) fn is_remote(&self) -> bool {
        cfg!(windows) && self.short().is_none()
    }

    /// The full path.
    #[cfg(windows)]
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// Writes the name as given. The full path of a local Windows pipe is written as its short name,
/// and a system name on Linux as its path.
impl fmt::Display for PipeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.short() {
            Some(short) => formatter.write_str(short),
            None => self.to_path().display().fmt(formatter),
        }
    }
}

impl FromStr for PipeName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        parse(name)
    }
}

impl TryFrom<&OsStr> for PipeName {
    type Error = NameError;

    fn try_from(name: &OsStr) -> Result<Self, NameError> {
        if let Some(name) = name.to_str() {
            return parse(name);
        }
        #[cfg(unix)]
        if name.as_encoded_bytes().contains(&b'/') {
            return Self::at(name);
        }
        Err(NameError::NotUnicode {
            name: name.to_owned(),
        })
    }
}

/// Converts through [`OsStr`].
macro_rules! try_from {
    ($($source:ty),* $(,)?) => {$(
        impl TryFrom<$source> for PipeName {
            type Error = NameError;

            fn try_from(name: $source) -> Result<Self, NameError> {
                let name: &OsStr = name.as_ref();
                Self::try_from(name)
            }
        }
    )*};
}

try_from! { &str, &String, String, &Path, &PathBuf, PathBuf, &OsString, OsString }

impl From<&PipeName> for PipeName {
    fn from(name: &PipeName) -> Self {
        name.clone()
    }
}

/// The prefix of every local pipe's path.
const LOCAL_PREFIX: &str = r"\\.\pipe\";

/// Another prefix of the same paths, which tells Windows not to normalize them.
const VERBATIM_PREFIX: &str = r"\\?\pipe\";

/// Strips the prefix of a local pipe's path from `name`, if present. Windows accepts either case,
/// and either slash unless the path is verbatim.
fn without_local_prefix(name: &str) -> Option<&str> {
    let (prefix, short) = name.split_at_checked(LOCAL_PREFIX.len())?;
    let is_local = prefix.replace('/', r"\").eq_ignore_ascii_case(LOCAL_PREFIX)
        || prefix.eq_ignore_ascii_case(VERBATIM_PREFIX);
    is_local.then_some(short)
}

/// The short name, which may have been given with the prefix of a local pipe's path.
fn short_name(name: &str) -> Result<&str, NameError> {
    let short = without_local_prefix(name).unwrap_or(name);
    check_short(short, name)?;
    Ok(short)
}

/// Refuses an empty name, and characters that a short name can't contain.
fn check_short(short: &str, name: &str) -> Result<(), NameError> {
    if short.is_empty() {
        return Err(NameError::Empty);
    }
    // On Linux a name is one file, so there is nothing that a backslash could separate.
    refuse(short, name, |c| {
        c == '/' || (cfg!(unix) && c == '\\') || c.is_control()
    })?;
    #[cfg(windows)]
    for component in short.split('\\') {
        check_component(component, name)?;
    }
    Ok(())
}

/// Refuses a component that Windows removes when it normalizes the path: the name would then be
/// another one's, or lead out of the pipes, as `..` does.
#[cfg(windows)]
fn check_component(component: &str, name: &str) -> Result<(), NameError> {
    if component.trim_end_matches(['.', ' ']).is_empty() {
        return Err(NameError::Character {
            name: name.to_owned(),
            character: component.chars().next().unwrap_or('\\'),
        });
    }
    Ok(())
}

fn refuse(part: &str, name: &str, refused: impl Fn(char) -> bool) -> Result<(), NameError> {
    match part.chars().find(|&c| refused(c)) {
        Some(character) => Err(NameError::Character {
            name: name.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

fn check_length(address: &OsStr) -> Result<(), NameError> {
    #[cfg(windows)]
    let length = address.to_string_lossy().encode_utf16().count();
    #[cfg(unix)]
    let length = address.len();
    if length <= MAX_ADDRESS_LENGTH {
        return Ok(());
    }
    Err(NameError::TooLong {
        address: Path::new(address).display().to_string(),
        length,
        limit: MAX_ADDRESS_LENGTH,
    })
}

#[cfg(windows)]
fn parse(name: &str) -> Result<PipeName, NameError> {
    let address = match remote_parts(name) {
        Some((host, short)) => {
            check_short(host, name)?;
            check_short(short, name)?;
            format!(r"\\{host}\pipe\{short}")
        }
        None => format!("{LOCAL_PREFIX}{}", short_name(name)?),
    };
    check_length(OsStr::new(&address))?;
    Ok(PipeName { address })
}

/// The host and the short name of `\\HOST\pipe\NAME`, where HOST is another machine.
#[cfg(windows)]
fn remote_parts(name: &str) -> Option<(&str, &str)> {
    let (host, rest) = name.strip_prefix(r"\\")?.split_once('\\')?;
    let (pipe, short) = rest.split_once('\\')?;
    (pipe.eq_ignore_ascii_case("pipe") && !matches!(host, "." | "?")).then_some((host, short))
}

#[cfg(unix)]
fn parse(name: &str) -> Result<PipeName, NameError> {
    if name.contains('/') && without_local_prefix(name).is_none() {
        return PipeName::at(OsStr::new(name));
    }
    let short = short_name(name)?;
    // Checked again, with its directory, when it is resolved.
    check_length(OsStr::new(short))?;
    let location = Location::Short(short.to_owned());
    Ok(PipeName { location })
}

/// The directory of this user's pipes.
#[cfg(unix)]
fn directory() -> PathBuf {
    let runtime_directory = std::env::var_os("XDG_RUNTIME_DIR");
    match runtime_directory.filter(|directory| !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory).join("pipe-server"),
        None => format!("/tmp/pipe-server-{}", rustix::process::getuid().as_raw()).into(),
    }
}

#[cfg(test)]
mod tests;
