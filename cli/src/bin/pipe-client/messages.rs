//! Where the messages come from.

use std::io::{self, IsTerminal as _, Write as _};

use pipe_server_cli::exit::Failure;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};

/// What the sample's client sends (*Named Pipe Client*).
const DEFAULT_MESSAGE: &str = "Default message from client.";

/// The messages, one after the other.
#[derive(Debug)]
pub(crate) enum Messages {
    /// From the command line.
    Given(std::vec::IntoIter<String>),
    /// The lines of stdin, and how many have been read.
    Lines(Lines<BufReader<Stdin>>, u64),
}

impl Messages {
    pub(crate) fn new(given: Vec<String>) -> Self {
        if !given.is_empty() {
            return Self::Given(given.into_iter());
        }
        // A user who typed the program's name alone would wait for it, and it for the user.
        if io::stdin().is_terminal() {
            return Self::Given(vec![DEFAULT_MESSAGE.to_owned()].into_iter());
        }
        Self::Lines(BufReader::new(tokio::io::stdin()).lines(), 0)
    }

    /// The next message, which is never empty: an empty one would end the conversation.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Failure> {
        let (lines, number) = match self {
            Self::Given(messages) => return Ok(messages.next()),
            Self::Lines(lines, number) => (lines, number),
        };
        loop {
            *number += 1;
            let line = lines.next_line().await;
            match line.map_err(|error| {
                Failure::new(format!("can't read line {number} of stdin: {error}"))
            })? {
                Some(line) if line.is_empty() => {
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
