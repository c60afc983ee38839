//! The source of the messages.

use std::io::{self, IsTerminal as _, Write as _};

use pipe_server_cli::exit::Failure;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin};

use crate::options::Options;

/// The message of the sample's client (*Named Pipe Client*).
const DEFAULT_MESSAGE: &str = "Default message from client.";

/// The messages to send.
#[derive(Debug)]
pub(crate) enum Messages {
    /// From the command line.
    Given(std::vec::IntoIter<String>),
    /// The lines of stdin.
    Lines(Lines),
}

impl Messages {
    pub(crate) fn new(options: &Options) -> Self {
        if !options.messages.is_empty() {
            return Self::Given(options.messages.clone().into_iter());
        }
        // At a terminal, waiting for input would look like hanging. The stdin of a health check may be anything.
        if options.ping || io::stdin().is_terminal() {
            return Self::Given(vec![DEFAULT_MESSAGE.to_owned()].into_iter());
        }
        Self::Lines(Lines {
            stdin: BufReader::new(tokio::io::stdin()),
            number: 0,
            longest: options.longest_line(),
        })
    }

    /// The next message, which is never empty: an empty one would end the conversation.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Failure> {
        let lines = match self {
            Self::Given(messages) => return Ok(messages.next()),
            Self::Lines(lines) => lines,
        };
        loop {
            match lines.next().await? {
                Some(line) if line.is_empty() => {
                    let number = lines.number;
                    _ = writeln!(
                        io::stderr(),
                        "pipe-client: line {number} of stdin is empty and is not sent"
                    );
                }
                other => return Ok(other),
            }
        }
    }
}

/// The lines of stdin, with limited length.
#[derive(Debug)]
pub(crate) struct Lines {
    stdin: BufReader<Stdin>,
    /// How many have been read.
    number: u64,
    /// The longest one in bytes, without its end.
    longest: usize,
}

impl Lines {
    /// The next one without its end, which is `\n` or `\r\n`.
    async fn next(&mut self) -> Result<Option<String>, Failure> {
        self.number += 1;
        let (number, longest) = (self.number, self.longest);
        // With its line ending. A longer line is not read further: it may never end.
        let most = u64::try_from(longest).unwrap_or(u64::MAX).saturating_add(2);
        let mut line = Vec::new();
        let mut stdin = (&mut self.stdin).take(most);
        let unreadable =
            |problem: String| Failure::new(format!("can't read line {number} of stdin: {problem}"));
        let read = stdin.read_until(b'\n', &mut line).await;
        if read.map_err(|error| unreadable(error.to_string()))? == 0 {
            return Ok(None);
        }
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        if line.len() > longest {
            return Err(Failure::new(format!(
                "line {number} of stdin is longer than a message may be: see --max-message-size"
            )));
        }
        let line = String::from_utf8(line).map_err(|error| unreadable(error.to_string()))?;
        Ok(Some(line))
    }
}
