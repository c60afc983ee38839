//! `--forward`: requests are answered elsewhere, by another server or by the subscribers of a NATS
//! subject.

use std::fmt;

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
pub(crate) struct ForwardUrl(String);

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
        self.0.starts_with(PIPE)
    }

    /// The parts of the URL.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, without quoting what may be a secret.
    pub(crate) fn destination(&self) -> Result<Destination, Failure> {
        let destination = match self.0.strip_prefix(PIPE) {
            Some(name) => values::parse_name(name.as_ref()).map(Destination::Pipe),
            None => other(&self.0),
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

impl From<String> for ForwardUrl {
    fn from(text: String) -> Self {
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
        ForwardUrl::from(text.to_owned())
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
