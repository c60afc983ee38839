//! The source of the messages.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _, Read as _, Write as _},
    path::Path,
    str, thread,
};

use pipe_server::Bytes;
use pipe_server_cli::{exit::Failure, streams::Blocking, text::Form};
use tokio::sync::mpsc::{Receiver, channel};

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
                lines: None,
                number: 0,
                end: if options.nul { 0 } else { b'\n' },
                longest: options.longest_line(),
                notation,
            }));
        };
        Ok(Self::Given(given?.into_iter()))
    }

    /// The next message, which is never empty: an empty one would end the conversation.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no message is lost.
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
            let stdin = Blocking(io::stdin().lock());
            stdin
                .take(most.saturating_add(1))
                .read_to_end(&mut contents)?;
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
    /// `None` until they are read.
    lines: Option<Receiver<Result<Vec<u8>, Failure>>>,
    /// The number of lines received.
    number: u64,
    /// What ends each.
    end: u8,
    /// The longest one in bytes, without its end.
    longest: usize,
    notation: MessageNotation,
}

impl Lines {
    /// # Cancel safety
    ///
    /// Cancel safe: no line is lost.
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

    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            None => self.lines.insert(read_lines(self.end, self.longest)?),
        };
        let line = lines.recv().await.transpose()?;
        self.number += 1;
        Ok(line)
    }
}

/// Reads the lines of stdin on a thread.
///
/// Not with `tokio::io::stdin`: shutting down the runtime would wait until the next line has been
/// read.
fn read_lines(end: u8, longest: usize) -> Result<Receiver<Result<Vec<u8>, Failure>>, Failure> {
    let (sender, lines) = channel(1);
    let read = move || {
        let mut stdin = BufReader::new(Blocking(io::stdin().lock()));
        for number in 1.. {
            let Some(line) = read_line(&mut stdin, number, end, longest).transpose() else {
                return;
            };
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    };
    let started = thread::Builder::new().name("stdin".to_owned()).spawn(read);
    started.map(|_| lines).map_err(|error| {
        Failure::new(format!(
            "can't start the thread that reads stdin: {error}: raise the limit of processes and threads \
             (ulimit -u)"
        ))
    })
}

/// The next line without its end, which is NUL, or `\n` or `\r\n`.
fn read_line(
    stdin: &mut impl BufRead,
    number: u64,
    end: u8,
    longest: usize,
) -> Result<Option<Vec<u8>>, Failure> {
    // With its line ending. A longer line is not read further: it may never end.
    let most = u64::try_from(longest).unwrap_or(u64::MAX).saturating_add(2);
    let mut line = Vec::new();
    let read = stdin
        .take(most)
        .read_until(end, &mut line)
        .map_err(|error| Failure::new(format!("can't read line {number} of stdin: {error}")))?;
    if read == 0 {
        return Ok(None);
    }
    if line.ends_with(&[end]) {
        line.pop();
        if end == b'\n' && line.ends_with(b"\r") {
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
