//! Command-line values that clap has no parser for.

use std::{ffi::OsStr, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use clap::builder::{OsStringValueParser, PathBufValueParser, TypedValueParser};
use pipe_server::PipeName;

use crate::exit::Failure;

/// Parses the name of a pipe. A path need not be Unicode.
pub fn name() -> impl TypedValueParser<Value = PipeName> {
    OsStringValueParser::new().try_map(|name| parse_name(&name))
}

/// Parses the name of a pipe that is part of a value.
pub fn parse_name(name: &OsStr) -> Result<PipeName, String> {
    check_home(name)?;
    PipeName::try_from(name.to_owned()).map_err(|error| error.to_string())
}

/// Parses the path of a file.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        check_home(path.as_os_str())?;
        Ok::<_, &str>(path)
    })
}

/// Refuses a path that begins with `~/` or `~USER/`. A shell replaces that only at the beginning of
/// a word, and not in `--option=~/x`; nothing does in a variable or a file.
fn check_home(path: &OsStr) -> Result<(), &'static str> {
    let path = path.as_encoded_bytes();
    match cfg!(unix) && path.starts_with(b"~") && path.contains(&b'/') {
        true => Err(
            "the shell has not replaced ~ by a home directory: write $HOME, or put a space in front of ~; a \
             directory of this name is ./~",
        ),
        false => Ok(()),
    }
}

/// `name`, in the directory of the system if `system` (`--system`) is set.
pub fn pipe_name(name: PipeName, system: bool) -> Result<PipeName, Failure> {
    if !system {
        return Ok(name);
    }
    let Some(short) = name.short() else {
        return Err(Failure::usage(format!(
            "--system needs a short name, such as mynamedpipe, and not the path {name}"
        )));
    };
    PipeName::system(short).map_err(|error| Failure::usage(error.to_string()))
}

/// A size in bytes, at least 1, such as `4096`, `64KiB` or `1MB`.
pub fn size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| "give bytes, as in 4096, 64KiB or 1MB".to_owned())?;
    match usize::try_from(size.as_u64()) {
        Ok(0) => Err("give 1 byte or more".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err("larger than this system can address".to_owned()),
    }
}

/// A size that the system takes as 32 bits.
pub fn size_u32(text: &str) -> Result<u32, String> {
    let size = size(text)?;
    u32::try_from(size).map_err(|_| format!("give at most {} bytes", u32::MAX))
}

/// A size of at least 1 byte, or `none` or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimit(pub Option<usize>);

impl FromStr for SizeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "unlimited" => Ok(Self(None)),
            text => size(text)
                .map(|bytes| Self(Some(bytes)))
                .map_err(|error| format!("{error}, or none")),
        }
    }
}

/// A duration, such as `500ms`, `10s`, `1h 30min` or `0s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a time, as in 500ms, 10s or 5min"))
}

/// A default of the library, in the form that [`duration`] parses.
pub fn text(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A timeout, or `none`. 0 is refused: it could mean both none and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

impl FromStr for TimeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration_or_none(text)? {
            Some(Duration::ZERO) => Err("give more than 0, or none for no limit".to_owned()),
            time => Ok(Self(time)),
        }
    }
}

/// How long to wait for something, or `none` for any time. With 0 there is no wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Option<Duration>);

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration_or_none(text).map(Self)
    }
}

fn duration_or_none(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "none" => Ok(None),
        text => duration(text)
            .map(Some)
            .map_err(|error| format!("{error}, or none")),
    }
}

#[cfg(test)]
mod tests {
    use pipe_server::defaults;

    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1MB"), Ok(1_000_000));
        assert!(size("0").is_err());
        assert!(size("many").is_err());
    }

    #[test]
    fn a_size_limit_can_be_none_but_not_0() {
        assert_eq!("none".parse(), Ok(SizeLimit(None)));
        assert_eq!("unlimited".parse(), Ok(SizeLimit(None)));
        assert_eq!("10MiB".parse(), Ok(SizeLimit(Some(10_485_760))));
        for wrong in ["0", "many", ""] {
            let error = wrong.parse::<SizeLimit>().unwrap_err();
            assert!(error.ends_with(", or none"), "{error}");
        }
    }

    #[test]
    fn a_default_is_parsed_again() {
        for time in [defaults::WRITE_TIMEOUT, Duration::from_millis(90_500)] {
            assert_eq!(duration(&text(time)), Ok(time));
        }
    }

    #[test]
    fn a_time_limit_can_be_none_but_not_0() {
        assert_eq!("none".parse(), Ok(TimeLimit(None)));
        for zero in ["0", "0s", "0ms"] {
            let error = zero.parse::<TimeLimit>().unwrap_err();
            assert!(error.contains("none"), "{error}");
        }
        assert_eq!("5s".parse(), Ok(TimeLimit(Some(Duration::from_secs(5)))));
        assert!("5".parse::<TimeLimit>().is_err());
    }

    #[test]
    fn a_wait_can_be_none_and_0() {
        assert_eq!("none".parse(), Ok(Wait(None)));
        assert_eq!("0s".parse(), Ok(Wait(Some(Duration::ZERO))));
        assert_eq!("5s".parse(), Ok(Wait(Some(Duration::from_secs(5)))));
        assert!("5".parse::<Wait>().is_err());
    }
}
