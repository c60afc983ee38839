//! Recorded messages: the lines that `pipe-server --dump` writes, and that `pipe-client --replay`
//! reads if they are JSON.

use std::{
    fmt::Write as _,
    str,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::escape::{Escaping, Notation, escape_json};

/// The side that sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Server,
}

/// One message of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: SystemTime,
    pub connection: u64,
    /// The number of the message among those of its connection in both directions, from 1.
    pub number: u64,
    pub sender: Sender,
    /// The length of the whole message, in bytes.
    pub length: usize,
    /// The message, or its beginning if it was cut off.
    pub bytes: &'a [u8],
}

/// The meaning of a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Message(OwnedRecord),
    /// The number of messages that are missing here, because they could not be written in time.
    Lost(u64),
}

/// A message that was read from a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    pub time: SystemTime,
    pub connection: u64,
    pub number: u64,
    pub sender: Sender,
    pub length: usize,
    pub bytes: Vec<u8>,
}

impl Record<'_> {
    /// One line of text, without its end. Whatever the message has in it, it can't control a
    /// terminal.
    pub fn text(&self) -> String {
        self.line(&text_of(self.bytes))
    }

    /// One line with the bytes in hexadecimal, without its end.
    pub fn hex(&self) -> String {
        let digits = hex::encode(self.bytes);
        let mut bytes = String::with_capacity(self.bytes.len() * 3);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && index % 2 == 0 {
                bytes.push(' ');
            }
            bytes.push(digit);
        }
        self.line(&bytes)
    }

    fn line(&self, bytes: &str) -> String {
        let arrow = match self.sender {
            Sender::Client => '>',
            Sender::Server => '<',
        };
        let cut = match self.length - self.bytes.len() {
            0 => String::new(),
            more => format!(" (+{more} bytes)"),
        };
        format!(
            "{} #{} {arrow} {} bytes: {bytes}{cut}",
            time_of(self.time),
            self.connection,
            self.length
        )
    }

    /// One line of JSON, without its end.
    pub fn json(&self) -> String {
        let sender = match self.sender {
            Sender::Client => "client",
            Sender::Server => "server",
        };
        let is_cut = self.bytes.len() < self.length;
        let (key, content) = match str::from_utf8(self.bytes) {
            Ok(text) => ("text", text.to_owned()),
            // Cut off in the middle of a character.
            Err(error) if is_cut && error.error_len().is_none() => {
                let valid = &self.bytes[..error.valid_up_to()];
                ("text", String::from_utf8_lossy(valid).into_owned())
            }
            Err(_) => ("hex", hex::encode(self.bytes)),
        };
        let object = format!(
            r#"{{"time":"{}","connection":{},"number":{},"from":"{sender}","bytes":{},"{key}":{}{}}}"#,
            time_of(self.time),
            self.connection,
            self.number,
            self.length,
            Value::from(content),
            if is_cut { r#","truncated":true"# } else { "" }
        );
        escape_json(&object)
    }
}

impl Line {
    /// Reads a line of JSON.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(line).map_err(|error| format!("it is not JSON: {error}"))?;
        if let Some(lost) = value.get("lost") {
            let lost = lost.as_u64().ok_or_else(|| wrong("lost"))?;
            return Ok(Self::Lost(lost));
        }
        let number = |key| {
            value
                .get(key)
                .and_then(Value::as_u64)
                .ok_or_else(|| wrong(key))
        };
        let text = |key| value.get(key).and_then(Value::as_str);
        let time = text("time").and_then(|time| humantime::parse_rfc3339(time).ok());
        let bytes = match (text("text"), text("hex")) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(digits)) => hex::decode(digits).map_err(|_| wrong("hex"))?,
            _ => return Err("it must have either text or hex".to_owned()),
        };
        let length = usize::try_from(number("bytes")?).map_err(|_| wrong("bytes"))?;
        if length < bytes.len() {
            return Err(wrong("bytes"));
        }
        Ok(Self::Message(OwnedRecord {
            time: time.ok_or_else(|| wrong("time"))?,
            connection: number("connection")?,
            number: number("number")?,
            sender: match text("from") {
                Some("client") => Sender::Client,
                Some("server") => Sender::Server,
                _ => return Err(wrong("from")),
            },
            length,
            bytes,
        }))
    }
}

fn wrong(key: &str) -> String {
    format!("{key} is missing or wrong")
}

/// The line of JSON that says how many messages are missing, without its end.
pub fn lost(time: SystemTime, messages: u64) -> String {
    format!(r#"{{"time":"{}","lost":{messages}}}"#, time_of(time))
}

/// The time in UTC, to the microsecond.
pub fn time_of(time: SystemTime) -> String {
    // Years that the notation lacks, from a clock that is wrong.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let time = time.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_micros(time).to_string()
}

/// The text of a message on one line. What is not UTF-8 is shown as `\xff`, and control characters
/// are escaped.
pub fn text_of(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for chunk in message.utf8_chunks() {
        // Writing to a String never fails.
        _ = Escaping::new(&mut text, Notation::Text).write_str(chunk.valid());
        for byte in chunk.invalid() {
            _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: &[u8], length: usize) -> Record<'_> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000),
            connection: 7,
            number: 3,
            sender: Sender::Client,
            length,
            bytes,
        }
    }

    #[test]
    fn a_line_of_json_is_read_as_what_was_written() {
        for message in [
            &b"hello"[..],
            "grüße \u{202e}\n\t\"\\".as_bytes(),
            b"\xff\x00",
            b"\0",
        ] {
            let record = record(message, message.len());
            let line = record.json();
            assert!(!line.contains(['\n', '\u{202e}']), "{line}");
            let read = Line::parse(line.as_bytes()).unwrap();
            let expected = OwnedRecord {
                time: record.time,
                connection: 7,
                number: 3,
                sender: Sender::Client,
                length: message.len(),
                bytes: message.to_vec(),
            };
            assert_eq!(read, Line::Message(expected));
        }
        let line = lost(SystemTime::UNIX_EPOCH, 12);
        assert_eq!(Line::parse(line.as_bytes()), Ok(Line::Lost(12)));
    }

    #[test]
    fn a_message_that_was_cut_off_says_so() {
        let cut = record(b"hel", 5);
        assert!(
            cut.json()
                .ends_with(r#""bytes":5,"text":"hel","truncated":true}"#)
        );
        assert!(cut.text().ends_with("#7 > 5 bytes: hel (+2 bytes)"));
        assert!(cut.hex().ends_with("#7 > 5 bytes: 68 65 6c (+2 bytes)"));
        // In the middle of a character.
        assert!(record(b"a\xc3", 3).json().contains(r#""text":"a""#));
    }

    #[test]
    fn text_can_not_control_a_terminal() {
        assert_eq!(
            text_of(b"a\x1b[2J\n\xff\0\xc3\xbc"),
            r"a\u{1b}[2J\n\xff\u{0}ü"
        );
    }

    #[test]
    fn a_wrong_line_is_described() {
        for (line, said) in [
            ("hello", "not JSON"),
            ("{}", "either text or hex"),
            (r#"{"text":"a","hex":"61"}"#, "either text or hex"),
            (r#"{"hex":"6"}"#, "hex is"),
            (r#"{"text":"a"}"#, "bytes is"),
            (r#"{"lost":"a"}"#, "lost is"),
            (r#"{"text":"ab","bytes":1}"#, "bytes is"),
            (r#"{"text":"a","bytes":1}"#, "time is"),
        ] {
            let error = Line::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn a_wrong_clock_has_a_time_too() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 38);
        assert!(time_of(far).starts_with("9999-12-31"));
    }
}
