//! The source of the messages.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::Path,
    str,
};

use pipe_server::Bytes;
use pipe_server_cli::{exit::Failure, text::Form};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin};

use crate::options::Options;

/// The message of the sample's client (*Named Pipe Client*).
const DEFAULT_MESSAGE: &str = "Default message from client.";

/// The messages to send.
#[derive(Debug)]
pub(crate) enum Messages {
    /// From the command line.
    Given(std::vec::IntoIter<Bytes>),
    /// The lines of stdin.
    Lines(Lines),
}

impl Messages {
    /// Reads all but the lines of stdin, so that nothing is sent if one of them can't be.
    pub(crate) fn new(options: &Options) -> Result<Self, Failure> {
        let notation = MessageNotation::new(options);
        let given: Result<Vec<Bytes>, Failure> = if !options.file.is_empty() {
            let files = options.file.iter();
            files
                .map(|file| contents(file, options.longest_message()))
                .collect()
        } else if !options.messages.is_empty() {
            let messages = options.messages.iter();
            messages
                .map(|message| {
                    let encoded = notation.encode(message.as_bytes());
                    encoded.map_err(|problem| {
                        Failure::usage(format!("the message {message:?} {problem}"))
                    })
                })
                .collect()
        } else if options.ping || !options.interactive && io::stdin().is_terminal() {
            // At a terminal, waiting for input would look like hanging. The stdin of a health check
            // may be anything.
            let message = Form::encode(options.form(), DEFAULT_MESSAGE);
            Ok(vec![message.into()])
        } else {
            return Ok(Self::Lines(Lines {
                stdin: BufReader::new(tokio::io::stdin()),
                number: 0,
                end: if options.nul { 0 } else { b'\n' },
                longest: options.longest_line(),
                notation,
            }));
        };
        Ok(Self::Given(given?.into_iter()))
    }

    /// The next message, which is never empty: an empty one would end the conversation.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Given(messages) => Ok(messages.next()),
            Self::Lines(lines) => lines.next_message().await,
        }
    }
}

/// How MESSAGE and the lines of stdin stand for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MessageNotation {
    Text(Form),
    Hex,
}

impl MessageNotation {
    pub(crate) fn new(options: &Options) -> Self {
        match options.hex {
            true => Self::Hex,
            false => Self::Text(options.form()),
        }
    }

    /// The message; otherwise what is wrong, to follow what it is.
    pub(crate) fn encode(self, text: &[u8]) -> Result<Bytes, String> {
        let message = match self {
            Self::Text(form) if form.wide => match str::from_utf8(text) {
                Ok(text) => form.encode(text),
                Err(error) => return Err(format!("can't be sent as UTF-16: {error}")),
            },
            Self::Text(form) => {
                let mut message = text.to_vec();
                message.extend(form.terminated.then_some(0));
                message
            }
            Self::Hex => {
                let digits: Vec<u8> = text
                    .iter()
                    .copied()
                    .filter(|byte| !byte.is_ascii_whitespace())
                    .collect();
                hex::decode(digits).map_err(|error| format!("is not hexadecimal: {error}"))?
            }
        };
        match message.is_empty() {
            true => Err("is empty, and an empty message can't be sent".to_owned()),
            false => Ok(message.into()),
        }
    }
}

/// The contents of a file, up to `longest` bytes.
fn contents(path: &Path, longest: usize) -> Result<Bytes, Failure> {
    let stdin = path == Path::new("-");
    let name = match stdin {
        true => "stdin".into(),
        false => path.display().to_string(),
    };
    let most = u64::try_from(longest).unwrap_or(u64::MAX);
    let mut contents = Vec::new();
    // One byte more than fits. Not by the size of the file alone: it may be a pipe, or grow.
    let mut read = || {
        if stdin {
            let mut stdin = io::stdin().lock().take(most.saturating_add(1));
            stdin.read_to_end(&mut contents)?;
            return Ok(None);
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        file.take(most.saturating_add(1))
            .read_to_end(&mut contents)?;
        Ok(metadata.is_file().then_some(metadata.len()))
    };
    let size = read()
        .map_err(|error: io::Error| Failure::new(format!("can't read {name}: {error}")))?
        .filter(|&size| size > most);
    if contents.is_empty() {
        return Err(Failure::new(format!(
            "{name} is empty, and an empty message can't be sent"
        )));
    }
    if contents.len() > longest {
        let size = match size {
            Some(size) => format!("{size}"),
            None => format!("more than {longest}"),
        };
        return Err(Failure::new(format!(
            "{name} has {size} bytes, over the limit of {longest}: see --max-message-size"
        )));
    }
    Ok(contents.into())
}

/// The lines of stdin, with limited length.
#[derive(Debug)]
pub(crate) struct Lines {
    stdin: BufReader<Stdin>,
    /// How many have been read.
    number: u64,
    /// What ends each.
    end: u8,
    /// The longest one in bytes, without its end.
    longest: usize,
    notation: MessageNotation,
}

impl Lines {
    async fn next_message(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(line) = self.next().await? {
            let number = self.number;
            if line.is_empty() {
                _ = writeln!(
                    io::stderr(),
                    "pipe-client: line {number} of stdin is empty and is not sent"
                );
                continue;
            }
            let encoded = self.notation.encode(&line);
            return match encoded {
                Ok(message) => Ok(Some(message)),
                Err(problem) => Err(Failure::new(format!("line {number} of stdin {problem}"))),
            };
        }
        Ok(None)
    }

    /// The next one without its end, which is NUL, or `\n` or `\r\n`.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        self.number += 1;
        let (number, longest) = (self.number, self.longest);
        // With its line ending. A longer line is not read further: it may never end.
        let most = u64::try_from(longest).unwrap_or(u64::MAX).saturating_add(2);
        let mut line = Vec::new();
        let mut stdin = (&mut self.stdin).take(most);
        let read = stdin
            .read_until(self.end, &mut line)
            .await
            .map_err(|error| Failure::new(format!("can't read line {number} of stdin: {error}")))?;
        if read == 0 {
            return Ok(None);
        }
        if line.ends_with(&[self.end]) {
            line.pop();
            if self.end == b'\n' && line.ends_with(b"\r") {
                line.pop();
            }
        }
        if line.len() > longest {
            return Err(Failure::new(format!(
                "line {number} of stdin is longer than a message may be: see --max-message-size"
            )));
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_may_have_spaces_and_either_case() {
        let message = MessageNotation::Hex.encode(b" 00 fF\tA b ");
        assert_eq!(message.unwrap(), &b"\x00\xff\xab"[..]);
        for (wrong, why) in [("0", "Odd"), ("0g", "'g'"), (" ", "empty")] {
            let problem = MessageNotation::Hex.encode(wrong.as_bytes()).unwrap_err();
            assert!(problem.contains(why), "{problem}");
        }
    }

    #[test]
    fn narrow_text_may_be_any_bytes_and_wide_text_may_not() {
        let form = |wide, terminated| MessageNotation::Text(Form { wide, terminated });
        assert_eq!(form(false, false).encode(b"\xff").unwrap(), &b"\xff"[..]);
        assert_eq!(form(false, true).encode(b"a").unwrap(), &b"a\0"[..]);
        assert_eq!(form(true, false).encode(b"a").unwrap(), &b"a\0"[..]);
        let problem = form(true, true).encode(b"\xff").unwrap_err();
        assert!(problem.contains("UTF-16"), "{problem}");
    }
}
