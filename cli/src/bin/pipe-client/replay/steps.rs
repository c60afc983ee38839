//! The steps of a replay, read from a dump.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    time::{Duration, SystemTime},
};

use pipe_server::Bytes;
use pipe_server_cli::{
    exit::Failure,
    recording::{Line, OwnedRecord, Sender},
    streams::Blocking,
};

/// One message of a recording.
#[derive(Debug)]
pub(crate) struct Step {
    /// The time from the first message of the recording.
    pub(crate) time: Duration,
    /// The index of its connection: the numbers of connections repeat if several servers have
    /// written to one dump.
    pub(crate) connection: usize,
    /// Its connection's number in the dump.
    pub(crate) recorded_connection: u64,
    /// Its number in the connection.
    pub(crate) number: u64,
    pub(crate) sender: Sender,
    pub(crate) message: Bytes,
    /// Whether it is the last one of its connection.
    pub(crate) is_last: bool,
}

/// Reads the dump at `path`, in which no message may be longer than `longest` bytes.
///
/// # Errors
///
/// Describes what can't be replayed, with its line.
pub(crate) fn read(path: &Path, longest: usize) -> Result<Vec<Step>, Failure> {
    let name = path.display();
    let unreadable = |error| Failure::new(format!("--replay: can't read {name}: {error}"));
    let mut source: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(Blocking(io::stdin())))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(unreadable)?))
    };
    let mut reading = Reading::new(longest);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if source.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        let added = reading.add(&line);
        added.map_err(|problem| {
            Failure::new(format!("--replay: line {number} of {name}: {problem}"))
        })?;
    }
    let steps = reading.steps;
    match steps.iter().any(|step| step.sender == Sender::Client) {
        true => Ok(steps),
        false => Err(Failure::new(format!(
            "--replay: {name} has no message of a client: nothing can be sent"
        ))),
    }
}

/// A dump that is being read.
struct Reading {
    longest: usize,
    steps: Vec<Step>,
    /// The index of the connection that has a number, and its last step.
    connections: HashMap<u64, (usize, usize)>,
    count: usize,
    begun: Option<SystemTime>,
}

impl Reading {
    fn new(longest: usize) -> Self {
        Self {
            longest,
            steps: Vec::new(),
            connections: HashMap::new(),
            count: 0,
            begun: None,
        }
    }

    fn add(&mut self, line: &[u8]) -> Result<(), String> {
        let record = match Line::parse(line)? {
            Line::Message(record) => record,
            Line::Lost(messages) => {
                return Err(format!(
                    "{messages} messages are missing here: the dump could not be written in time; record again to a \
                     faster disk"
                ));
            }
        };
        self.check(&record)?;
        let begun = *self.begun.get_or_insert(record.time);
        // The clock may have been set back.
        let earliest = self.steps.last().map_or(Duration::ZERO, |last| last.time);
        let time = record.time.duration_since(begun).unwrap_or_default();
        let connection = self.connection(&record)?;
        self.steps.push(Step {
            time: time.max(earliest),
            connection,
            recorded_connection: record.connection,
            number: record.number,
            sender: record.sender,
            message: record.bytes.into(),
            is_last: true,
        });
        Ok(())
    }

    fn check(&self, record: &OwnedRecord) -> Result<(), String> {
        let OwnedRecord { length, bytes, .. } = record;
        if bytes.len() < *length {
            return Err(format!(
                "the message was cut off, {} of its {length} bytes are there: record again with --dump-bytes none",
                bytes.len()
            ));
        }
        if bytes.is_empty() {
            return Err("the message is empty, and an empty message can't be sent".to_owned());
        }
        if *length > self.longest {
            return Err(format!(
                "the message has {length} bytes, more than {}: see --max-message-size",
                self.longest
            ));
        }
        Ok(())
    }

    /// The index of the connection of a message, which becomes its last one.
    fn connection(&mut self, record: &OwnedRecord) -> Result<usize, String> {
        let step = self.steps.len();
        let number = record.connection;
        if record.number == 1 {
            let index = self.count;
            self.count += 1;
            self.connections.insert(number, (index, step));
            return Ok(index);
        }
        let Some((index, last)) = self.connections.get_mut(&number) else {
            return Err(format!(
                "connection {number} begins with its message {}: the earlier ones may be in another file (--dump-size)",
                record.number
            ));
        };
        let before = &mut self.steps[*last];
        if record.number != before.number + 1 {
            return Err(format!(
                "message {} of connection {number} follows message {}: those between them are missing",
                record.number, before.number
            ));
        }
        before.is_last = false;
        *last = step;
        Ok(*index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(connection: u64, number: u64, second: u64) -> String {
        format!(
            r#"{{"time":"2026-01-01T00:00:{second:02}Z","connection":{connection},"number":{number},"from":"client","bytes":1,"text":"a"}}"#
        )
    }

    fn steps(lines: &[String]) -> Result<Vec<Step>, String> {
        let mut reading = Reading::new(1);
        for line in lines {
            reading.add(line.as_bytes())?;
        }
        Ok(reading.steps)
    }

    #[test]
    fn a_number_that_repeats_is_another_connection() {
        let lines = [line(1, 1, 5), line(2, 1, 6), line(1, 2, 7), line(1, 1, 8)];
        let steps = steps(&lines).unwrap();
        let found = steps.iter().map(|step| {
            let second = step.time.as_secs();
            (step.connection, step.number, step.is_last, second)
        });
        let expected = [
            (0, 1, false, 0),
            (1, 1, true, 1),
            (0, 2, true, 2),
            (2, 1, true, 3),
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_change_the_order() {
        let steps = steps(&[line(1, 1, 5), line(1, 2, 7), line(1, 3, 2)]).unwrap();
        assert_eq!(steps[2].time, steps[1].time);
    }

    #[test]
    fn missing_messages_are_noticed() {
        let error = steps(&[line(1, 2, 0)]).unwrap_err();
        assert!(error.contains("begins with its message 2"), "{error}");
        let error = steps(&[line(1, 1, 0), line(1, 3, 0)]).unwrap_err();
        assert!(
            error.contains("message 3 of connection 1 follows message 1"),
            "{error}"
        );
    }
}
