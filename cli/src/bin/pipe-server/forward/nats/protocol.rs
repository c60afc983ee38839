//! What a NATS server sends. All that it chooses is bounded before it is kept.
//!
//! `async-nats` has no such bounds: it collects a line until it ends, a message of any length that
//! is announced, and an answer to each PING. It opens its connections itself, so nothing but a port
//! of this machine can be put before it; a filter there would be open to all users, and would have
//! to do the TLS and to choose among the servers of a cluster. So these files speak the part of the
//! protocol that `--forward` needs: see *Client Protocol* in NATS's documentation.

use std::{io, str, time::Duration};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader, copy_buf, sink};

/// Servers accept 4 KiB from their clients, and up to 64 KiB from each other.
pub(super) const LONGEST_LINE: u64 = 64 * 1024;

/// For the headers of a reply, which are looked at for an error alone.
pub(super) const LONGEST_HEADERS: u64 = 64 * 1024;

/// How many PINGs may wait for their answer. Servers send one every two minutes.
pub(super) const MOST_PINGS: usize = 1000;

/// NATS's default.
const MAX_PAYLOAD: u64 = 1024 * 1024;

/// How much of a wrong line is quoted, in characters.
const QUOTED: usize = 64;

/// Why a connection ended, or was not made. The subject of the sentence is the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum NatsError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("it has read nothing for {0:?}")]
    NotReading(Duration),
    #[error("it refuses this client: {0}")]
    Refused(String),
    #[error("{0}")]
    Tls(String),
    #[error("it sent a line of more than {LONGEST_LINE} bytes")]
    LineTooLong,
    #[error("it sent more than {MOST_PINGS} PINGs at once")]
    TooManyPings,
    #[error("it announced a message of {length} bytes, and its max_payload is {limit}")]
    MessageTooLong { length: u64, limit: u64 },
    #[error("it sent what is not NATS's protocol: {0:?}")]
    Syntax(String),
}

impl NatsError {
    /// Whether the server does what no NATS server does.
    pub(super) fn is_violation(&self) -> bool {
        match self {
            Self::LineTooLong
            | Self::TooManyPings
            | Self::MessageTooLong { .. }
            | Self::Syntax(_) => true,
            Self::Io(_)
            | Self::Closed
            | Self::Silent(_)
            | Self::NotReading(_)
            | Self::Refused(_)
            | Self::Tls(_) => false,
        }
    }

    fn syntax(line: &[u8]) -> Self {
        Self::Syntax(String::from_utf8_lossy(line).chars().take(QUOTED).collect())
    }
}

/// A line from the server.
#[derive(Debug)]
pub(super) enum Operation {
    Info(ServerInfo),
    Ping,
    Pong,
    Ok,
    Error(String),
    /// The message itself follows: see [`Receiver::body`] and [`Receiver::skip`].
    Message(MessageHead),
}

/// What the server says about itself.
#[derive(Debug)]
pub(super) struct ServerInfo {
    pub(super) max_payload: u64,
    pub(super) tls_required: bool,
    /// The other servers of its cluster.
    pub(super) connect_urls: Vec<String>,
    /// Whether it is about to shut down.
    pub(super) lame_duck: bool,
}

/// The line in front of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MessageHead {
    pub(super) subject: String,
    /// The lengths of the two parts that follow, in bytes.
    pub(super) headers: u64,
    pub(super) payload: u64,
}

impl Operation {
    fn parse(line: &[u8]) -> Result<Self, NatsError> {
        let wrong = || NatsError::syntax(line);
        let text = str::from_utf8(line).map_err(|_| wrong())?;
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match verb {
            "PING" => Ok(Self::Ping),
            "PONG" => Ok(Self::Pong),
            "+OK" => Ok(Self::Ok),
            "-ERR" => Ok(Self::Error(rest.trim_matches('\'').to_owned())),
            "INFO" => ServerInfo::parse(rest).map(Self::Info).ok_or_else(wrong),
            "MSG" => MessageHead::parse(rest, false)
                .map(Self::Message)
                .ok_or_else(wrong),
            "HMSG" => MessageHead::parse(rest, true)
                .map(Self::Message)
                .ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl ServerInfo {
    fn parse(json: &str) -> Option<Self> {
        let info = serde_json::from_str::<Value>(json).ok()?;
        let is = |name: &str| info[name].as_bool().unwrap_or(false);
        let urls = info["connect_urls"].as_array().into_iter().flatten();
        Some(Self {
            max_payload: info["max_payload"].as_u64().unwrap_or(MAX_PAYLOAD),
            tls_required: is("tls_required"),
            connect_urls: urls
                .filter_map(|url| url.as_str().map(str::to_owned))
                .collect(),
            lame_duck: is("ldm"),
        })
    }
}

impl MessageHead {
    /// Parses `SUBJECT SID [REPLY-TO] [HEADERS] TOTAL`, where the subscription is the only one.
    fn parse(text: &str, has_headers: bool) -> Option<Self> {
        let mut words: Vec<_> = text.split_ascii_whitespace().collect();
        let total: u64 = words.pop()?.parse().ok()?;
        let headers = match has_headers {
            true => words.pop()?.parse().ok()?,
            false => 0,
        };
        let ([subject, _] | [subject, _, _]) = words[..] else {
            return None;
        };
        Some(Self {
            subject: subject.to_owned(),
            headers,
            payload: total.checked_sub(headers)?,
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.headers + self.payload
    }
}

/// The receiving side of a connection.
#[derive(Debug)]
pub(super) struct Receiver<R> {
    input: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input: BufReader::new(input),
            line: Vec::new(),
        }
    }

    /// Returns the stream, from which nothing must have been read ahead: what came before TLS does
    /// not count as encrypted.
    pub(super) fn into_unbuffered(self) -> Result<R, NatsError> {
        match self.input.buffer() {
            [] => Ok(self.input.into_inner()),
            ahead => Err(NatsError::syntax(ahead)),
        }
    }

    pub(super) async fn operation(&mut self) -> Result<Operation, NatsError> {
        self.next_line().await?;
        Operation::parse(&self.line)
    }

    async fn next_line(&mut self) -> Result<(), NatsError> {
        self.line.clear();
        let most = LONGEST_LINE + 2;
        let mut input = (&mut self.input).take(most);
        input.read_until(b'\n', &mut self.line).await?;
        if self.line.pop() != Some(b'\n') {
            return match input.limit() {
                0 => Err(NatsError::LineTooLong),
                _ => Err(NatsError::Closed),
            };
        }
        if self.line.ends_with(b"\r") {
            self.line.pop();
        }
        Ok(())
    }

    /// Receives the headers and the payload of a message.
    pub(super) async fn body(
        &mut self,
        head: &MessageHead,
    ) -> Result<(Vec<u8>, Vec<u8>), NatsError> {
        let headers = self.bytes(head.headers).await?;
        let payload = self.bytes(head.payload).await?;
        self.end().await?;
        Ok((headers, payload))
    }

    /// Receives a message and keeps nothing of it.
    pub(super) async fn skip(&mut self, head: &MessageHead) -> Result<(), NatsError> {
        let mut input = (&mut self.input).take(head.length());
        let skipped = copy_buf(&mut input, &mut sink()).await?;
        check_complete(skipped, head.length())?;
        self.end().await
    }

    /// The memory grows with what arrives, and not with what is announced.
    async fn bytes(&mut self, length: u64) -> Result<Vec<u8>, NatsError> {
        let mut bytes = Vec::new();
        let mut input = (&mut self.input).take(length);
        let received = input.read_to_end(&mut bytes).await?;
        check_complete(received as u64, length)?;
        Ok(bytes)
    }

    async fn end(&mut self) -> Result<(), NatsError> {
        self.next_line().await?;
        match &self.line[..] {
            [] => Ok(()),
            more => Err(NatsError::syntax(more)),
        }
    }
}

fn check_complete(received: u64, length: u64) -> Result<(), NatsError> {
    match received == length {
        true => Ok(()),
        false => Err(NatsError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn operation(text: &[u8]) -> Result<Operation, NatsError> {
        Receiver::new(text).operation().await
    }

    #[tokio::test]
    async fn a_line_is_as_long_as_the_limit_and_no_longer() {
        let line = |length: u64| {
            let text = "x".repeat(length as usize - "-ERR ''".len());
            format!("-ERR '{text}'\r\n")
        };
        let longest = operation(line(LONGEST_LINE).as_bytes()).await;
        assert!(matches!(longest, Ok(Operation::Error(_))), "{longest:?}");
        let longer = operation(line(LONGEST_LINE + 1).as_bytes()).await;
        assert!(matches!(longer, Err(NatsError::LineTooLong)), "{longer:?}");
        let unfinished = operation(b"PING").await;
        assert!(
            matches!(unfinished, Err(NatsError::Closed)),
            "{unfinished:?}"
        );
    }

    #[test]
    fn a_message_says_how_long_its_parts_are() {
        let head = |text: &str, has_headers| {
            let head = MessageHead::parse(text, has_headers)?;
            Some((head.subject, head.headers, head.payload))
        };
        assert_eq!(head("a.b 1 10", false), Some(("a.b".to_owned(), 0, 10)));
        assert_eq!(head("a.b 1 c 10", false), Some(("a.b".to_owned(), 0, 10)));
        assert_eq!(head("a.b 1 4 10", true), Some(("a.b".to_owned(), 4, 6)));
        assert_eq!(head("a.b 1 c 4 10", true), Some(("a.b".to_owned(), 4, 6)));
        for wrong in [
            "",
            "1",
            "a 1",
            "a 1 -1",
            "a 1 18446744073709551616",
            "a b c d 1",
        ] {
            assert_eq!(head(wrong, false), None, "{wrong}");
        }
        for wrong in ["a 1 11 10", "a 1 10", "a 1 x 10"] {
            assert_eq!(head(wrong, true), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn messages_follow_each_other_whole() {
        let mut receiver =
            Receiver::new(&b"MSG a 1 4\r\n\r\n\r\n\r\nMSG b 1 2\r\nxy\r\nPING\r\n"[..]);
        let Ok(Operation::Message(head)) = receiver.operation().await else {
            panic!("no message");
        };
        let (headers, payload) = receiver.body(&head).await.unwrap();
        assert_eq!((&headers[..], &payload[..]), (&b""[..], &b"\r\n\r\n"[..]));
        let Ok(Operation::Message(head)) = receiver.operation().await else {
            panic!("no message");
        };
        receiver.skip(&head).await.unwrap();
        assert!(matches!(receiver.operation().await, Ok(Operation::Ping)));
    }

    #[test]
    fn a_server_says_what_it_is() {
        let info = ServerInfo::parse("{}").unwrap();
        assert_eq!((info.max_payload, info.tls_required), (MAX_PAYLOAD, false));
        let json = r#"{"max_payload":5,"tls_required":true,"ldm":true,"connect_urls":["a:1",2]}"#;
        let info = ServerInfo::parse(json).unwrap();
        assert_eq!((info.max_payload, info.tls_required), (5, true));
        assert!(info.lame_duck && info.connect_urls == ["a:1"]);
        assert!(ServerInfo::parse("{").is_none());
    }
}
