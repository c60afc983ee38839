//! The log, or a dump, on its way to a stream or to a file.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, PoisonError},
    thread,
    time::Duration,
};

use pipe_server_cli::mutex::Mutex;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that a thread of its own writes, since nobody may be reading them: a full pipe would block
/// whoever logs. What does not fit is dropped and counted, but a line longer than the capacity is
/// taken while nothing else waits.
///
/// Not `tracing-appender`: its queue is bounded in lines, not in bytes, it prints to stdout when it
/// can't be flushed, and it depends on a parser of dates.
#[derive(Clone, Debug)]
pub(crate) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How much may wait to be written, in bytes.
    capacity: usize,
    state: Mutex<QueuedLines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueuedLines {
    waiting: Vec<u8>,
    /// How many lines did not fit since the thread took the last ones. They belong after
    /// `waiting`, so no line is added until the thread has taken both.
    dropped: u64,
    /// The thread is writing.
    writing: bool,
}

impl Queue {
    /// Starts the thread `name`, for which up to `capacity` bytes may wait. It calls `report` with
    /// the number of lines that are missing in `output` at this point.
    pub(crate) fn start<W: Write + Send + 'static>(
        name: &str,
        capacity: usize,
        output: W,
        report: impl FnMut(u64, &mut W) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            capacity,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let queue = Self(Arc::clone(&shared));
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || shared.write_to(output, report))?;
        Ok(queue)
    }

    /// Waits until everything is written, but no longer than `time`. Whether it is.
    pub(crate) fn flush(&self, time: Duration) -> bool {
        let Shared { state, changed, .. } = &*self.0;
        let (state, _) = changed
            .wait_timeout_while(state.lock(), time, |state| !state.is_done())
            .unwrap_or_else(PoisonError::into_inner);
        state.is_done()
    }

    /// Adds one line, with its end. Never blocks for longer than another thread takes.
    pub(crate) fn push(&self, line: &[u8]) {
        let Shared {
            capacity,
            state,
            changed,
        } = &*self.0;
        let mut state = state.lock();
        let is_full = !state.waiting.is_empty() && state.waiting.len() + line.len() > *capacity;
        if state.dropped > 0 || is_full {
            state.dropped += 1;
        } else {
            state.waiting.extend_from_slice(line);
        }
        changed.notify_all();
    }
}

impl QueuedLines {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.dropped == 0
    }

    fn is_done(&self) -> bool {
        self.is_empty() && !self.writing
    }
}

impl Shared {
    fn write_to<W: Write>(&self, mut output: W, mut report: impl FnMut(u64, &mut W)) {
        let mut lines = Vec::new();
        let mut missing = 0;
        loop {
            lines.clear();
            // After a line that is longer than usual.
            lines.shrink_to(self.capacity);
            {
                let mut state = self.state.lock();
                state.writing = false;
                self.changed.notify_all();
                let mut state = self
                    .changed
                    .wait_while(state, |state| state.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                state.writing = true;
                mem::swap(&mut lines, &mut state.waiting);
                missing += mem::take(&mut state.dropped);
            }
            match output.write_all(&lines) {
                Ok(()) if missing > 0 => report(mem::take(&mut missing), &mut output),
                Ok(()) => {}
                // A full disk may have room again.
                Err(_) => missing += lines.iter().filter(|&&byte| byte == b'\n').count() as u64,
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

/// Each call is one line. It never blocks for longer than another one takes.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    const LINE: &[u8] = b"line\n";

    const CAPACITY: usize = 64 * 1024;

    /// Far longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Writes when it is told to with what the result will be, and passes on what it wrote.
    struct Output {
        results: Receiver<io::Result<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Output {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            self.results.recv().unwrap()?;
            self.written.send(lines.to_vec()).unwrap();
            Ok(lines.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Test {
        queue: Queue,
        results: Sender<io::Result<()>>,
        written: Receiver<Vec<u8>>,
        reported: Receiver<u64>,
    }

    impl Test {
        fn start() -> Self {
            let (results, result) = mpsc::channel();
            let (write, written) = mpsc::channel();
            let (report, reported) = mpsc::channel();
            let output = Output {
                results: result,
                written: write,
            };
            let report = move |missing, _: &mut Output| report.send(missing).unwrap();
            Self {
                queue: Queue::start("log", CAPACITY, output, report).unwrap(),
                results,
                written,
                reported,
            }
        }
    }

    #[test]
    fn lines_are_written_in_their_order() {
        let test = Test::start();
        test.results.send(Ok(())).unwrap();
        test.queue.push(LINE);
        assert_eq!(test.written.recv().unwrap(), LINE);
        test.results.send(Ok(())).unwrap();
        test.queue.push(b"next\n");
        assert_eq!(test.written.recv().unwrap(), b"next\n");
        assert!(test.queue.flush(LONG));
        assert!(test.reported.try_recv().is_err());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_reported_where_it_is_missing() {
        let test = Test::start();
        // More than fits into what is being written and what waits.
        let pushed = 2 * CAPACITY / LINE.len() + 100;
        for _ in 0..pushed {
            test.queue.push(LINE);
        }
        assert!(!test.queue.flush(Duration::ZERO));
        for _ in 0..3 {
            test.results.send(Ok(())).unwrap();
        }
        assert!(test.queue.flush(LONG));
        let written: usize = test.written.try_iter().map(|lines| lines.len()).sum();
        let missing: u64 = test.reported.try_iter().sum();
        assert!(missing > 0);
        assert_eq!(written / LINE.len() + missing as usize, pushed);
    }

    #[test]
    fn a_line_longer_than_the_capacity_is_taken_while_nothing_else_waits() {
        let test = Test::start();
        let long = vec![b'x'; 2 * CAPACITY];
        test.results.send(Ok(())).unwrap();
        test.queue.push(&long);
        assert_eq!(test.written.recv().unwrap(), long);
        assert!(test.queue.flush(LONG));
        assert!(test.reported.try_recv().is_err());
    }

    #[test]
    fn lines_that_could_not_be_written_are_reported_when_the_output_works_again() {
        let test = Test::start();
        test.results
            .send(Err(io::ErrorKind::StorageFull.into()))
            .unwrap();
        test.queue.push(LINE);
        assert!(test.queue.flush(LONG));
        assert!(test.reported.try_recv().is_err());
        test.results.send(Ok(())).unwrap();
        test.queue.push(b"next\n");
        assert_eq!(test.written.recv().unwrap(), b"next\n");
        assert_eq!(test.reported.recv().unwrap(), 1);
    }

    #[test]
    fn an_output_that_blocks_does_not_block_the_end() {
        let test = Test::start();
        test.queue.push(LINE);
        assert!(!test.queue.flush(Duration::from_millis(1)));
    }
}
