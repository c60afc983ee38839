//! How replies are printed.

use std::{
    io::{self, IsTerminal as _},
    str,
    time::Duration,
};

use pipe_server_cli::{
    escape::{escape_json, escape_lines},
    streams,
    text::{Encoding, Form},
};
use serde_json::Value;

use crate::options::Options;

/// Prints replies to stdout.
#[derive(Debug)]
pub(crate) struct Replies {
    shape: Shape,
    encoding: Encoding,
    address: String,
    /// Text is for a terminal, which it must not control.
    terminal: bool,
    /// Text is JSON, and must remain that.
    is_json: bool,
    /// How many have been printed.
    number: u64,
}

/// What is printed of a reply.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Its text, on a line.
    Line,
    /// The same with NUL at the end.
    Nul,
    /// Its bytes and nothing else.
    Raw,
    Hex,
    Json {
        hex: bool,
    },
    /// How long it took.
    Latency,
}

impl Replies {
    /// Those of the server at `address`.
    pub(crate) fn new(options: &Options, address: String) -> Self {
        let shape = match options {
            options if options.json => Shape::Json { hex: options.hex },
            options if options.ping => Shape::Latency,
            options if options.raw => Shape::Raw,
            options if options.nul => Shape::Nul,
            options if options.hex => Shape::Hex,
            _ => Shape::Line,
        };
        Self {
            shape,
            encoding: options.encoding,
            address,
            terminal: io::stdout().is_terminal(),
            is_json: options.rpc.is_some(),
            number: 0,
        }
    }

    /// Prints a reply and flushes: a program may be waiting for it.
    pub(crate) fn print(&mut self, reply: &[u8], latency: Duration) -> io::Result<()> {
        let printed = self.shaped(reply, latency);
        streams::write(&printed)
    }

    /// What to print of a reply.
    pub(crate) fn shaped(&mut self, reply: &[u8], latency: Duration) -> Vec<u8> {
        self.number += 1;
        let line = match self.shape {
            Shape::Raw => return reply.to_vec(),
            Shape::Nul if self.terminal => {
                return (self.harmless(reply) + "\0").into_bytes();
            }
            Shape::Nul => {
                let form = Form::of(reply, self.encoding);
                let mut text = match form.wide {
                    true => decode(reply, self.encoding).0.into_bytes(),
                    false => reply[..reply.len() - usize::from(form.terminated)].to_vec(),
                };
                text.push(0);
                return text;
            }
            Shape::Line if self.terminal => self.harmless(reply),
            Shape::Line => decode(reply, self.encoding).0,
            Shape::Hex => hex::encode(reply),
            Shape::Json { hex } => self.json(reply, hex, latency),
            Shape::Latency => format!("{} replied in {latency:.1?}", self.address),
        };
        (line + "\n").into_bytes()
    }

    /// The text of a reply that can't control a terminal.
    fn harmless(&self, reply: &[u8]) -> String {
        let text = decode(reply, self.encoding).0;
        match self.is_json {
            true => escape_json(&text),
            false => escape_lines(&text),
        }
    }

    fn json(&self, reply: &[u8], hex: bool, latency: Duration) -> String {
        let (key, content) = match decode(reply, self.encoding) {
            (text, true) if !hex => ("text", text),
            _ => ("hex", hex::encode(reply)),
        };
        let object = format!(
            r#"{{"number":{},"bytes":{},"{key}":{},"latency_us":{}}}"#,
            self.number,
            reply.len(),
            Value::from(content),
            latency.as_micros()
        );
        escape_json(&object)
    }
}

/// The text of a message without its terminator, and whether all of it was valid. What was not
/// becomes U+FFFD.
fn decode(message: &[u8], encoding: Encoding) -> (String, bool) {
    let form = Form::of(message, encoding);
    let (mut text, valid) = match form.wide {
        true => {
            let units: Vec<u16> = message
                .chunks(2)
                .map(|unit| u16::from_le_bytes([unit[0], *unit.get(1).unwrap_or(&0)]))
                .collect();
            match String::from_utf16(&units) {
                Ok(text) => (text, message.len() % 2 == 0),
                Err(_) => (String::from_utf16_lossy(&units), false),
            }
        }
        false => match str::from_utf8(message) {
            Ok(text) => (text.to_owned(), true),
            Err(_) => (String::from_utf8_lossy(message).into_owned(), false),
        },
    };
    if form.terminated {
        text.pop();
    }
    // In UTF-8 it marks nothing and is text.
    match text.strip_prefix('\u{feff}').filter(|_| form.wide) {
        Some(rest) => (rest.to_owned(), valid),
        None => (text, valid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &[u8], encoding: Encoding) -> String {
        decode(message, encoding).0
    }

    #[test]
    fn a_terminating_nul_is_not_text() {
        assert_eq!(text(b"answer\0", Encoding::Auto), "answer");
        assert_eq!(text(b"a\0n\0s\0\0\0", Encoding::Auto), "ans");
        assert_eq!(text(b"answer", Encoding::Auto), "answer");
    }

    #[test]
    fn only_in_utf_16_a_byte_order_mark_is_not_text() {
        let text = |message| decode(message, Encoding::Auto);
        assert_eq!(text(b"\xff\xfeh\0i\0"), ("hi".to_owned(), true));
        assert_eq!(text(b"\xef\xbb\xbfhi"), ("\u{feff}hi".to_owned(), true));
    }

    #[test]
    fn every_form_is_decoded_to_what_was_encoded() {
        for (wide, terminated) in [(false, false), (false, true), (true, true)] {
            for text in ["default answer from server", "Grüße", "猫 🐈"] {
                let message = Form { wide, terminated }.encode(text);
                assert_eq!(decode(&message, Encoding::Auto), (text.to_owned(), true));
            }
        }
    }

    #[test]
    fn what_is_no_text_is_shown_all_the_same() {
        for (message, encoding, shown) in [
            (&b"a\xff"[..], Encoding::Utf8, "a\u{fffd}"),
            (b"a\0\x00\xd8", Encoding::Utf16, "a\u{fffd}"),
            (b"a\0b", Encoding::Utf16, "ab"),
        ] {
            assert_eq!(decode(message, encoding), (shown.to_owned(), false));
        }
    }

    #[test]
    fn json_has_text_or_hex() {
        let mut replies = Replies {
            shape: Shape::Json { hex: false },
            encoding: Encoding::Auto,
            address: String::new(),
            terminal: false,
            is_json: false,
            number: 0,
        };
        let latency = Duration::from_micros(1234);
        for (reply, line) in [
            (
                &b"gr\xc3\xbc\xc3\x9fe\"\n\0"[..],
                "{\"number\":1,\"bytes\":10,\"text\":\"grüße\\\"\\n\",\"latency_us\":1234}\n",
            ),
            (
                b"\xff\x00\x01",
                "{\"number\":2,\"bytes\":3,\"hex\":\"ff0001\",\"latency_us\":1234}\n",
            ),
            // What would change the direction of text on a terminal.
            (
                b"\xe2\x80\xae",
                "{\"number\":3,\"bytes\":3,\"text\":\"\\u202e\",\"latency_us\":1234}\n",
            ),
        ] {
            assert_eq!(replies.shaped(reply, latency), line.as_bytes());
        }
    }
}
