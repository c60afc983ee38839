//! Requests and replies, in text.

use std::io::{self, Write as _};

use pipe_server::{CallError, Client, RecvError, SendError};
use pipe_server_cli::{
    exit::{Failure, chain},
    text::{Encoding, Form},
};

use crate::{options::Options, ping::NOT_ANSWERING};

/// A connection to the server, and the encoding of its messages.
#[derive(Debug)]
pub(crate) struct Conversation {
    client: Client,
    encoding: Encoding,
    address: String,
    ping: bool,
}

impl Conversation {
    pub(crate) fn new(client: Client, options: &Options) -> Self {
        let address = options.pipe_name.to_path().display().to_string();
        Self {
            client,
            encoding: options.encoding,
            address,
            ping: options.ping,
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a message and returns its reply.
    pub(crate) async fn exchange(&mut self, message: &str) -> Result<String, Failure> {
        // The sample's Unicode server reads up to the NUL. UTF-8 is sent without one, for all other servers,
        // including `pipe-server --exec` commands.
        let wide = self.encoding == Encoding::Utf16;
        let request = Form {
            wide,
            terminated: wide,
        }
        .encode(message);
        match self.client.call(request).await {
            Ok(reply) => Ok(decode(&reply, self.encoding)),
            Err(CallError::TimedOut { after, .. }) => Err(self.no_reply(format!(
                "no reply from {} within {}: see --timeout",
                self.address,
                humantime::format_duration(after)
            ))),
            Err(error) => {
                let problem = format!("no reply from {}: {}", self.address, chain(&error));
                Err(match error {
                    // The server may still answer other clients.
                    CallError::Send(SendError::TooLong { .. })
                    | CallError::Recv(RecvError::TooLong { .. }) => {
                        Failure::new(format!("{problem}: see --max-message-size"))
                    }
                    _ => self.no_reply(problem),
                })
            }
        }
    }

    fn no_reply(&self, problem: String) -> Failure {
        let failure = Failure::new(problem);
        match self.ping {
            true => failure.with_code(NOT_ANSWERING),
            false => failure,
        }
    }
}

/// Prints a reply and flushes: a program may be waiting for it.
pub(crate) fn print(reply: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{reply}")?;
    stdout.flush()
}

/// The text of a message without its terminator. Invalid text becomes U+FFFD.
fn decode(message: &[u8], encoding: Encoding) -> String {
    let form = Form::of(message, encoding);
    let mut text = match form.wide {
        true => {
            let units: Vec<u16> = message
                .chunks(2)
                .map(|unit| u16::from_le_bytes([unit[0], *unit.get(1).unwrap_or(&0)]))
                .collect();
            String::from_utf16_lossy(&units)
        }
        false => String::from_utf8_lossy(message).into_owned(),
    };
    if form.terminated {
        text.pop();
    }
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminating_nul_is_not_text() {
        assert_eq!(decode(b"answer\0", Encoding::Auto), "answer");
        assert_eq!(decode(b"a\0n\0s\0\0\0", Encoding::Auto), "ans");
        assert_eq!(decode(b"answer", Encoding::Auto), "answer");
    }

    #[test]
    fn every_form_is_decoded_to_what_was_encoded() {
        for (wide, terminated) in [(false, false), (false, true), (true, true)] {
            for text in ["default answer from server", "Grüße", "猫 🐈"] {
                let message = Form { wide, terminated }.encode(text);
                assert_eq!(decode(&message, Encoding::Auto), text);
            }
        }
    }

    #[test]
    fn what_is_no_text_is_shown_all_the_same() {
        assert_eq!(decode(b"a\xff", Encoding::Utf8), "a\u{fffd}");
        assert_eq!(decode(b"a\0\x00\xd8", Encoding::Utf16), "a\u{fffd}");
        assert_eq!(decode(b"a\0b", Encoding::Utf16), "ab");
    }
}
