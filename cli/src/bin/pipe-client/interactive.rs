//! A conversation at a terminal.

use std::{
    borrow::Cow,
    fs::OpenOptions,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pipe_server::{CallError, SendError};
use pipe_server_cli::{
    exit::Failure,
    streams::{self, write_failure},
};
use reedline::{
    ExternalPrinter, FileBackedHistory, PromptEditMode, PromptHistorySearch, Reedline, Signal,
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::sleep,
};

use crate::{
    conversation::Conversation, messages::MessageNotation, options::Options, replies::Replies,
};

/// How many lines the history has.
const HISTORY_LINES: usize = 1000;

/// How many messages may wait until the editor shows them, which it does ten times a second.
/// Further ones stay in the pipe.
const MESSAGES_TO_SHOW: usize = 64;

/// The pause before the next attempt to show a message.
const SHOW_PAUSE: Duration = Duration::from_millis(20);

/// Sends the lines that the user enters until Ctrl-D.
pub(crate) async fn converse(
    conversation: &mut Conversation,
    replies: &mut Replies,
    options: &Options,
) -> Result<(), Failure> {
    let notation = MessageNotation::new(options);
    let mut prompt = Prompt::start(options.history.as_deref())?;
    let mut to_show = None;
    loop {
        let line = tokio::select! {
            line = prompt.lines.recv() => line,
            () = sleep(SHOW_PAUSE), if to_show.is_some() => {
                to_show = to_show.and_then(|text| prompt.show(text));
                continue;
            }
            message = conversation.unsolicited(), if to_show.is_none() => match message {
                Ok(message) => {
                    to_show = prompt.show(line_of(&replies.shaped(&message, Duration::ZERO)));
                    continue;
                }
                Err(failure) => {
                    prompt.end().await;
                    return Err(failure);
                }
            }
        };
        let Some(line) = line else {
            return Ok(());
        };
        // Before the reply, as they came before it.
        let waiting = prompt.take_unshown().chain(to_show.take());
        for text in waiting {
            streams::write(format!("{text}\n").as_bytes()).map_err(write_failure)?;
        }
        match notation.encode(line.as_bytes()) {
            Err(problem) => complain(Failure::new(format!("the line {problem}"))),
            Ok(message) => {
                for _ in 0..options.repeat {
                    let sent = Instant::now();
                    match conversation.exchange(message.clone()).await {
                        Ok(reply) => replies
                            .print(&reply, sent.elapsed())
                            .map_err(write_failure)?,
                        // The connection can still be used.
                        Err(
                            error @ (CallError::TimedOut { .. }
                            | CallError::Send(SendError::TooLong { .. })),
                        ) => {
                            complain(conversation.failure(error));
                            break;
                        }
                        Err(error) => return Err(conversation.failure(error)),
                    }
                }
            }
        }
        prompt.resume();
    }
}

fn complain(failure: Failure) {
    _ = failure.report("pipe-client");
}

/// What is printed of a message, without the end of the line.
fn line_of(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    text.trim_end_matches('\n').to_owned()
}

/// A line editor on a thread of its own: it blocks until a line has been entered.
struct Prompt {
    lines: Receiver<String>,
    /// Lets the editor read the next line.
    next: mpsc::Sender<()>,
    printer: ExternalPrinter<String>,
    /// Makes the editor return.
    ended: Arc<AtomicBool>,
}

impl Prompt {
    fn start(history: Option<&Path>) -> Result<Self, Failure> {
        let printer = ExternalPrinter::new(MESSAGES_TO_SHOW);
        let ended = Arc::new(AtomicBool::new(false));
        let mut editor = Reedline::create()
            .with_external_printer(printer.clone())
            .with_break_signal(Arc::clone(&ended))
            .with_history_exclusion_prefix(Some(" ".to_owned()));
        if let Some(path) = history {
            editor = editor.with_history(Box::new(open_history(path)?));
        }
        let (line, lines) = channel(1);
        let (next, may_read) = mpsc::channel();
        thread::Builder::new()
            .name("prompt".to_owned())
            .spawn(move || read_lines(editor, &line, &may_read))
            .map_err(|error| {
                Failure::new(format!("can't start the thread of the prompt: {error}"))
            })?;
        Ok(Self {
            lines,
            next,
            printer,
            ended,
        })
    }

    /// Lets the user enter the next line.
    fn resume(&self) {
        // Fails if the editor has ended, which `lines` reports.
        _ = self.next.send(());
    }

    /// Shows a line above the prompt, or returns it if too many are waiting.
    fn show(&self, text: String) -> Option<String> {
        let shown = self.printer.sender().try_send(text);
        shown.err().map(|error| error.into_inner())
    }

    /// Lines that the editor has not shown yet.
    fn take_unshown(&self) -> impl Iterator<Item = String> {
        std::iter::from_fn(|| self.printer.get_line())
    }

    /// Ends the editor, which leaves the terminal as it was.
    async fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.next);
        while self.lines.recv().await.is_some() {}
    }
}

/// Opens a history for this user alone.
fn open_history(path: &Path) -> Result<FileBackedHistory, Failure> {
    let opened = create_history(path).map_err(|error| error.to_string());
    let opened = opened.and_then(|()| {
        FileBackedHistory::with_file(HISTORY_LINES, path.to_owned())
            .map_err(|error| error.to_string())
    });
    opened.map_err(|problem| {
        Failure::new(format!(
            "can't use {} as --history: {problem}",
            path.display()
        ))
    })
}

/// Creates the file unless it exists.
fn create_history(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::{
            fs,
            os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
        };

        if fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo()) {
            let problem = "it is a FIFO, which could block: choose a regular file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        options.mode(0o600);
    }
    options.append(true).create(true).open(path)?;
    Ok(())
}

/// Reads lines until Ctrl-D.
fn read_lines(mut editor: Reedline, lines: &Sender<String>, next: &mpsc::Receiver<()>) {
    loop {
        let line = match editor.read_line(&Marker) {
            Ok(Signal::Success(line)) => line,
            // The line is discarded, as in a shell.
            Ok(Signal::CtrlC) => continue,
            Ok(_) => return,
            Err(error) => {
                complain(Failure::new(format!("can't use the terminal: {error}")));
                return;
            }
        };
        if line.is_empty() {
            continue;
        }
        if let Err(error) = editor.sync_history() {
            complain(Failure::new(format!("can't write the history: {error}")));
        }
        if lines.blocking_send(line).is_err() || next.recv().is_err() {
            return;
        }
    }
}

/// What is shown in front of a line.
struct Marker;

impl reedline::Prompt for Marker {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_history_search_indicator(&self, _: PromptHistorySearch) -> Cow<'_, str> {
        "search: ".into()
    }
}
