//! The URL of a subject on a NATS server.

use std::{borrow::Cow, fmt};

use percent_encoding::percent_decode_str;
use url::Url;

use super::connect::NatsAddress;

/// NATS's own.
pub(super) const DEFAULT_PORT: u16 = 4222;

/// Where requests are published.
pub(crate) struct Target {
    /// Without credentials.
    pub(super) server: Url,
    pub(super) address: NatsAddress,
    pub(super) tls: bool,
    pub(super) credentials: Credentials,
    pub(super) subject: String,
}

#[derive(PartialEq, Eq)]
pub(super) enum Credentials {
    None,
    Token(String),
    Password { user: String, password: String },
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "give nats://HOST:PORT/SUBJECT, tls://HOST:PORT/SUBJECT or, for another pipe, pipe:NAME";

        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("the URL has no scheme: {FORM}"));
        };
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(format!("the URL's scheme is not nats or tls: {FORM}")),
        };
        // Not left to the URL: '%' and '?' are ordinary characters of a subject.
        let (authority, subject) = rest.split_once('/').unwrap_or((rest, ""));
        check_subject(subject)?;
        let mut server = Url::parse(&format!("{scheme}://{authority}"))
            .map_err(|error| format!("the URL's host is wrong: {error}; {FORM}"))?;
        let address = NatsAddress::new(&server).filter(|_| server.host_str() != Some(""));
        let Some(address) = address else {
            return Err(format!("the URL has no host: {FORM}"));
        };
        if !server.path().is_empty() || server.query().is_some() || server.fragment().is_some() {
            return Err(
                "'?', '#' and '\\' can't be in front of the URL's subject; in a password, write them as \
                 %3F, %23 and %5C"
                    .to_owned(),
            );
        }
        let user = decode(server.username())?;
        let credentials = match server.password().map(decode).transpose()? {
            Some(password) => Credentials::Password { user, password },
            None if user.is_empty() => Credentials::None,
            None => Credentials::Token(user),
        };
        let port = server.port().unwrap_or(DEFAULT_PORT);
        // They fail only for a URL without a host.
        _ = server.set_username("");
        _ = server.set_password(None);
        _ = server.set_port(Some(port));
        Ok(Self {
            server,
            address,
            tls,
            credentials,
            subject: subject.to_owned(),
        })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Target")
            .field("server", &self.server.as_str())
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

fn check_subject(subject: &str) -> Result<(), String> {
    let problem = if subject.is_empty() {
        "the URL has no subject: put one after the host, as in nats://HOST:PORT/SUBJECT"
    } else if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "the URL's subject has a blank or a control character in it: remove it"
    } else if subject.contains(['*', '>']) {
        "the URL's subject has a wildcard (* or >), and requests can't be published to one: name one subject"
    } else if subject.split('.').any(str::is_empty) {
        "the URL's subject has an empty part: put characters before, after and between its dots"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Cow::into_owned)
        .map_err(|_| "the URL's user, password or token is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> String {
        Target::parse(url).unwrap_err()
    }

    #[test]
    fn a_url_names_a_server_and_a_subject() {
        let target = Target::parse("nats://example.org/a.b-c_D?%20").unwrap();
        assert_eq!(target.server.as_str(), "nats://example.org:4222");
        assert_eq!(target.subject, "a.b-c_D?%20");
        assert!(!target.tls && target.credentials == Credentials::None);

        let target = Target::parse("tls://[::1]:5000/a").unwrap();
        assert_eq!(target.server.as_str(), "tls://[::1]:5000");
        assert!(target.tls);
    }

    #[test]
    fn credentials_are_decoded_and_in_neither_the_address_nor_the_debug_output() {
        let target = Target::parse("nats://ann:s%2Fe%40cret@localhost/a").unwrap();
        let password = Credentials::Password {
            user: "ann".to_owned(),
            password: "s/e@cret".to_owned(),
        };
        assert!(target.credentials == password);
        let shown = format!("{} {target:?}", target.server);
        assert!(!shown.contains("ann") && !shown.contains("cret"), "{shown}");

        let target = Target::parse("nats://t0ken@localhost/a").unwrap();
        assert!(target.credentials == Credentials::Token("t0ken".to_owned()));
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_to_do_and_without_its_password() {
        for (url, said) in [
            ("localhost:4222/a", "no scheme"),
            ("http://u:secret@localhost/a", "not nats or tls"),
            ("nats://u:secret@localhost:4222", "no subject"),
            ("nats://u:secret@localhost:4222/", "no subject"),
            ("nats:///a", "host"),
            ("nats://u:secret@:4222/a", "host"),
            ("nats://u:secret@localhost:port/a", "port"),
            ("nats://u:secret@localhost/a b", "blank"),
            ("nats://u:secret@localhost/a\n", "blank"),
            ("nats://u:secret@localhost/a.*", "wildcard"),
            ("nats://u:secret@localhost/a.>", "wildcard"),
            ("nats://u:secret@localhost/a..b", "empty part"),
            ("nats://u:secret@localhost/.a", "empty part"),
            ("nats://u:secret?@localhost/a", ""),
            ("nats://u:secret#@localhost/a", ""),
            ("nats://u:%ff@localhost/a", "UTF-8"),
        ] {
            let problem = problem(url);
            assert!(problem.contains(said), "{url}: {problem}");
            assert!(!problem.contains("secret"), "{url}: {problem}");
        }
    }
}
