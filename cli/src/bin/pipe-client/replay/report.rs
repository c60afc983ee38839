//! The differences between a recording and its replay.

use pipe_server_cli::{exit::Failure, recording::text_of, streams};

use super::steps::Step;

/// The number of bytes of a message that are printed, and of those before the first byte that
/// differs.
const SHOWN: usize = 256;
const SHOWN_BEFORE: usize = 64;

/// The outcome of waiting for a recorded message.
#[derive(Debug)]
pub(super) enum Got<'a> {
    Message(&'a [u8]),
    /// Nothing, for this reason.
    Nothing(&'a str),
}

/// Counts messages, and prints those that differ.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) connections: usize,
    pub(super) sent: u64,
    /// The messages of the server that are as recorded.
    pub(super) same: u64,
    pub(super) different: u64,
    /// The recorded messages that were neither sent nor awaited, because their connection had
    /// ended.
    pub(super) skipped: u64,
}

impl Report {
    /// Compares what came with a recorded message of the server.
    pub(super) fn compare(&mut self, step: &Step, got: &Got<'_>) -> Result<(), Failure> {
        match got {
            Got::Message(message) if **message == *step.message => {
                self.same += 1;
                Ok(())
            }
            got => {
                self.different += 1;
                streams::print(difference(step, got).as_bytes())
            }
        }
    }

    /// Reports a message of the server that was not recorded, after the last one of its
    /// connection.
    pub(super) fn one_too_many(
        &mut self,
        connection: u64,
        number: u64,
        message: &[u8],
    ) -> Result<(), Failure> {
        self.different += 1;
        let (shown, _) = shown(message, &[], 0);
        let head = head(connection, number);
        streams::print(format!("{head}: it was not recorded\n+{shown}\n").as_bytes())
    }

    /// Reports that a message of the client can't be sent.
    pub(super) fn unsent(&mut self, step: &Step, why: &str) -> Result<(), Failure> {
        self.different += 1;
        let head = head(step.recorded_connection, step.number);
        streams::print(format!("{head}: it can't be sent: {why}\n").as_bytes())
    }

    /// One line, with its end.
    pub(super) fn summary(&self) -> String {
        let Self {
            connections,
            sent,
            same,
            different,
            skipped,
        } = self;
        let skipped = match skipped {
            0 => String::new(),
            skipped => format!("; {skipped} skipped, because their connection had ended"),
        };
        let messages = if *sent == 1 { "message" } else { "messages" };
        format!(
            "{sent} {messages} sent, connections: {connections}; messages of the server as recorded: {same}, \
             differences: {different}{skipped}\n"
        )
    }
}

fn head(connection: u64, number: u64) -> String {
    format!("connection {connection}, message {number}")
}

/// The recorded message and what came, in the manner of a diff.
fn difference(step: &Step, got: &Got<'_>) -> String {
    let head = head(step.recorded_connection, step.number);
    let expected = &*step.message;
    match got {
        Got::Message(message) => {
            let same = expected.iter().zip(*message).take_while(|(a, b)| a == b);
            let at = same.count();
            let (expected, got) = shown(expected, message, at);
            format!("{head}: byte {} differs\n-{expected}\n+{got}\n", at + 1)
        }
        Got::Nothing(why) => {
            let (expected, _) = shown(expected, &[], 0);
            format!("{head}: {why}\n-{expected}\n")
        }
    }
}

/// The parts of two messages around `at`, as text or, if that looks the same, in hexadecimal.
fn shown(expected: &[u8], got: &[u8], at: usize) -> (String, String) {
    let begin = at.saturating_sub(SHOWN_BEFORE);
    let excerpt = |message: &[u8], notation: fn(&[u8]) -> String| {
        let end = message.len().min(begin + SHOWN);
        let text = notation(message.get(begin..end).unwrap_or_default());
        let before = if begin > 0 { "…" } else { "" };
        match message.len() - end.min(message.len()) {
            0 => format!("{before}{text}"),
            more => format!("{before}{text}… (+{more} bytes)"),
        }
    };
    let hex: fn(&[u8]) -> String = |bytes| hex::encode(bytes);
    let texts = (excerpt(expected, text_of), excerpt(got, text_of));
    match texts.0 == texts.1 {
        true => (excerpt(expected, hex), excerpt(got, hex)),
        false => texts,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipe_server_cli::recording::Sender;

    use super::*;

    fn shown_difference(expected: &[u8], got: &[u8]) -> String {
        let step = Step {
            time: Duration::ZERO,
            connection: 0,
            recorded_connection: 3,
            number: 2,
            sender: Sender::Server,
            message: expected.to_vec().into(),
            is_last: true,
        };
        difference(&step, &Got::Message(got))
    }

    #[test]
    fn the_place_that_differs_is_shown() {
        assert_eq!(
            shown_difference(b"hello", b"hullo"),
            "connection 3, message 2: byte 2 differs\n-hello\n+hullo\n"
        );
        assert_eq!(
            shown_difference(b"hello", b"hello\n"),
            "connection 3, message 2: byte 6 differs\n-hello\n+hello\\n\n"
        );
        // The same as text.
        assert_eq!(
            shown_difference(b"\n", br"\n"),
            "connection 3, message 2: byte 1 differs\n-0a\n+5c6e\n"
        );
        let mut expected = vec![b'a'; 1000];
        let mut got = expected.clone();
        expected[500] = b'x';
        got[500] = b'y';
        let difference = shown_difference(&expected, &got);
        assert!(
            difference.contains("byte 501 differs\n-…aaa"),
            "{difference}"
        );
        assert!(difference.contains("ax"), "{difference}");
        assert!(difference.contains("ay"), "{difference}");
        assert!(difference.contains("a… (+308 bytes)\n"), "{difference}");
        // One that is shorter than what is left out.
        let difference = shown_difference(&[b'a'; 1000], b"");
        assert!(difference.contains("+\n"), "{difference}");
    }
}
