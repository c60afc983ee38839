//! `--forward`: requests are answered elsewhere, by another server or by the subscribers of a NATS
//! subject.

#[cfg(unix)]
use std::os::unix::ffi::OsStrExt as _;
use std::{
    ffi::{OsStr, OsString},
    fmt,
};

use pipe_server::PipeName;
use pipe_server_cli::{exit::Failure, values};

#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod pipe;

/// The scheme of another message pipe.
const PIPE: &str = "pipe:";

/// The value of `--forward`. It is not checked while the command line is parsed, because clap's
/// errors quote the value, which may contain a password.
#[derive(Clone)]
pub(crate) struct ForwardUrl(OsString);

/// Where messages are forwarded to.
#[derive(Debug)]
pub(crate) enum Destination {
    Pipe(PipeName),
    #[cfg(feature = "nats")]
    Nats(nats::Target),
}

impl ForwardUrl {
    /// Whether it names a message pipe.
    pub(crate) fn is_pipe(&self) -> bool {
        self.pipe().is_some()
    }

    /// The name of the message pipe, if there is one.
    fn pipe(&self) -> Option<&OsStr> {
        // A path need not be Unicode.
        #[cfg(unix)]
        let name = self.0.as_bytes().strip_prefix(PIPE.as_bytes());
        #[cfg(unix)]
        return name.map(OsStr::from_bytes);
        #[cfg(windows)]
        self.0.to_str()?.strip_prefix(PIPE).map(OsStr::new)
    }

    /// The parts of the URL.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, without quoting what may be a secret.
    pub(crate) fn destination(&self) -> Result<Destination, Failure> {
        let destination = match (self.pipe(), self.0.to_str()) {
            (Some(name), _) => values::parse_name(name).map(Destination::Pipe),
            (None, Some(url)) => other(url),
            (None, None) => {
                Err("a URL must be Unicode; only the path of pipe:PATH need not be".to_owned())
            }
        };
        destination.map_err(|problem| Failure::usage(format!("--forward: {problem}")))
    }
}

#[cfg(feature = "nats")]
fn other(url: &str) -> Result<Destination, String> {
    nats::Target::parse(url).map(Destination::Nats)
}

#[cfg(not(feature = "nats"))]
fn other(url: &str) -> Result<Destination, String> {
    Err(match url.split_once("://") {
        Some(("nats" | "tls", _)) => {
            "this pipe-server was built without NATS: build it with --features nats"
        }
        _ => "give pipe:NAME",
    }
    .to_owned())
}

impl From<OsString> for ForwardUrl {
    fn from(text: OsString) -> Self {
        Self(text)
    }
}

impl fmt::Debug for ForwardUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ForwardUrl(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ForwardUrl {
        ForwardUrl::from(OsString::from(text))
    }

    #[test]
    fn a_pipe_has_a_name() {
        for (text, name) in [("pipe:mynamedpipe", "mynamedpipe"), ("pipe:a.b", "a.b")] {
            assert!(url(text).is_pipe());
            match url(text).destination().unwrap() {
                Destination::Pipe(found) => assert_eq!(found, name.parse().unwrap()),
                #[cfg(feature = "nats")]
                Destination::Nats(_) => panic!("{text}"),
            }
        }
        let failure = url("pipe:").destination().unwrap_err();
        assert_eq!(failure.code(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn the_path_of_a_pipe_need_not_be_unicode() {
        use std::{os::unix::ffi::OsStringExt as _, path::Path};

        let url = ForwardUrl::from(OsString::from_vec(b"pipe:/a/\xff".to_vec()));
        assert!(url.is_pipe());
        let Ok(Destination::Pipe(name)) = url.destination() else {
            panic!("no pipe");
        };
        assert_eq!(name.to_path(), Path::new(OsStr::from_bytes(b"/a/\xff")));
        let url = ForwardUrl::from(OsString::from_vec(b"nats://\xff/a".to_vec()));
        assert_eq!(url.destination().unwrap_err().code(), 2);
    }

    #[test]
    fn a_url_is_not_shown() {
        let shown = format!("{:?}", url("nats://t0ken@localhost/a"));
        assert!(!shown.contains("t0ken"), "{shown}");
    }

    #[cfg(not(feature = "nats"))]
    #[test]
    fn a_build_without_nats_says_so() {
        let problem = |text: &str| url(text).destination().unwrap_err().message().to_owned();
        for scheme in ["nats", "tls"] {
            let problem = problem(&format!("{scheme}://u:secret@localhost/a"));
            assert!(problem.contains("--features nats"), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
        assert!(problem("mynamedpipe").contains("give pipe:NAME"));
    }
}
