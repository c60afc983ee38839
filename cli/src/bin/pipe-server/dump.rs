//! `--dump`: every message in both directions, for the user to see or to replay.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use pipe_server_cli::{
    exit::Failure,
    recording::{self, Record, Sender},
    streams::Blocking,
};
use tracing::warn;

use self::options::DumpFormat;
use crate::logging::{file::LogFile, place::Content, queue::Queue};

pub(crate) use self::{handler::Dumped, options::DumpOptions};

mod handler;
mod options;

/// The number of bytes that may wait to be written: with the longest message by default, some
/// hundred messages.
const CAPACITY: usize = 16 * 1024 * 1024;

/// The time limit at exit for writing the rest.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Colors of the terminal (ECMA-48, SGR): cyan for the client, yellow for the server.
const OF_CLIENT: &str = "\x1b[36m";
const OF_SERVER: &str = "\x1b[33m";
const NO_COLOR: &str = "\x1b[0m";

/// The place where messages are recorded. All of its clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Dump {
    queue: Queue,
    form: Form,
    /// The number of bytes of a message that are recorded.
    limit: usize,
    is_stdout: bool,
}

#[derive(Clone, Copy, Debug)]
struct Form {
    format: DumpFormat,
    color: bool,
}

impl Dump {
    /// Opens the file or stdout for `--dump`, if it was given.
    pub(crate) fn start(options: &DumpOptions) -> Result<Option<Self>, Failure> {
        let Some(path) = &options.dump else {
            return Ok(None);
        };
        let is_stdout = path == Path::new("-");
        let format = options.dump_format;
        let set = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = is_stdout && format != DumpFormat::Json && io::stdout().is_terminal() && !set;
        let form = Form { format, color };
        let queue = if is_stdout {
            start_queue(Blocking(io::stdout()), form)
        } else {
            let limit = options.dump_size.0.map(|bytes| bytes as u64);
            let file = LogFile::open(path, Content::Dump, limit).map_err(|error| {
                Failure::new(format!(
                    "--dump: can't open {} for appending: {error}; give a file that this user may write to, in a \
                     directory that exists",
                    path.display()
                ))
            })?;
            start_queue(file, form)
        };
        let queue = queue.map_err(|error| {
            Failure::new(format!("can't start the thread of the dump: {error}"))
        })?;
        Ok(Some(Self {
            queue,
            form,
            limit: options.dump_bytes.0.unwrap_or(usize::MAX),
            is_stdout,
        }))
    }

    /// The queue in front of stdout, if that is where messages go.
    pub(crate) fn stdout(&self) -> Option<&Queue> {
        self.is_stdout.then_some(&self.queue)
    }

    /// The dump of another connection.
    pub(crate) fn connection(&self) -> ConnectionDump {
        ConnectionDump {
            dump: self.clone(),
            messages: AtomicU64::new(0),
        }
    }

    /// Writes what is left, unless that takes too long.
    pub(crate) fn flush(&self) {
        self.queue.flush(FLUSH_TIMEOUT);
    }
}

fn start_queue<W: Write + Send + 'static>(output: W, form: Form) -> io::Result<Queue> {
    let report = move |messages: u64, output: &mut W| {
        // The next line is written to the same place, and fails if this one does.
        _ = output.write_all(form.lost(messages).as_bytes());
        warn!(
            messages,
            "messages are missing in the dump: they could not be written in time"
        );
    };
    Queue::start("dump", CAPACITY, output, report)
}

impl Form {
    fn line(self, record: &Record<'_>) -> String {
        let line = match self.format {
            DumpFormat::Text => record.text(),
            DumpFormat::Hex => record.hex(),
            DumpFormat::Json => record.json(),
        };
        match (self.color, record.sender) {
            (false, _) => line + "\n",
            (true, Sender::Client) => format!("{OF_CLIENT}{line}{NO_COLOR}\n"),
            (true, Sender::Server) => format!("{OF_SERVER}{line}{NO_COLOR}\n"),
        }
    }

    fn lost(self, messages: u64) -> String {
        let now = SystemTime::now();
        match self.format {
            DumpFormat::Json => recording::lost(now, messages) + "\n",
            _ => format!(
                "{} {messages} messages are missing here: they could not be written in time\n",
                recording::time_of(now)
            ),
        }
    }
}

/// The dump of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionDump {
    dump: Dump,
    /// The number of messages recorded so far.
    messages: AtomicU64,
}

impl ConnectionDump {
    /// Records a message. Called in the order in which the messages are taken and given.
    pub(crate) fn record(&self, connection: u64, sender: Sender, message: &[u8]) {
        let record = Record {
            time: SystemTime::now(),
            connection,
            number: self.messages.fetch_add(1, Ordering::Relaxed) + 1,
            sender,
            length: message.len(),
            bytes: &message[..message.len().min(self.dump.limit)],
        };
        self.dump
            .queue
            .push(self.dump.form.line(&record).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_tell_directions_apart() {
        let lines = [Sender::Client, Sender::Server].map(|sender| {
            let record = Record {
                time: SystemTime::UNIX_EPOCH,
                connection: 1,
                number: 1,
                sender,
                length: 6,
                bytes: b"\x1b[31m!",
            };
            let [plain, colored] = [false, true].map(|color| {
                let format = DumpFormat::Text;
                Form { format, color }.line(&record)
            });
            // The message adds none.
            assert!(!plain.contains('\x1b'), "{plain:?}");
            assert_eq!(colored.matches('\x1b').count(), 2, "{colored:?}");
            assert!(colored.contains(plain.trim_end()), "{colored:?}");
            colored
        });
        assert!(lines[0].starts_with(OF_CLIENT) && lines[1].starts_with(OF_SERVER));
    }
}
