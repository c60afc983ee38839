//! Output: one line on stdout, and the log on stderr or in a file.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env, fmt,
    io::{self, IsTerminal as _, Write},
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use pipe_server_cli::{
    escape::{Escaping, Notation},
    exit::{Failure, panic_text},
    streams::{self, Blocking},
    values::SizeLimit,
};
use tracing::{
    Dispatch, Event, Subscriber, dispatcher, error, field::display, info,
    level_filters::LevelFilter, warn,
};
use tracing_subscriber::{
    field::RecordFields,
    filter::Targets,
    fmt::{
        self as lines, FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{DefaultFields, Format, Json, JsonFields, Writer},
    },
    layer::SubscriberExt as _,
    registry::{LookupSpan, Registry},
    util::SubscriberInitExt as _,
};

use self::{file::LogFile, place::Content, queue::Queue};
use crate::options::{LogFormat, LoggingOptions};

pub(crate) mod file;
pub(crate) mod place;
pub(crate) mod queue;

/// How much of the log may wait to be written, in bytes: several thousand lines.
const CAPACITY: usize = 1024 * 1024;

/// How long the program waits at exit for the rest of the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The running log. Dropping it writes what is left, unless that takes too long.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub(crate) struct Log {
    queue: Queue,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_TIMEOUT);
    }
}

/// Starts the log. Logging never blocks.
pub(crate) fn start(options: &LoggingOptions) -> Result<Log, Failure> {
    match &options.log_file {
        None => {
            let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
            start_on(options, color, Blocking(io::stderr()), || {
                Blocking(io::stderr())
            })
        }
        Some(path) => {
            let file = open(path, options.log_file_size)?;
            start_on(options, false, file.clone(), move || file.clone())
        }
    }
}

/// Opens the file of the log for appending, and creates it if it does not exist.
pub(crate) fn open(path: &Path, size: SizeLimit) -> Result<LogFile, Failure> {
    let limit = size.0.map(|bytes| bytes as u64);
    LogFile::open(path, Content::Log, limit).map_err(|error| {
        Failure::new(format!(
            "--log-file: can't open {} for appending: {error}; give a file that this user may write to, in a \
             directory that exists",
            path.display()
        ))
    })
}

/// Starts the log on `output`. `direct` writes to the same place.
fn start_on<O, W>(
    options: &LoggingOptions,
    color: bool,
    output: O,
    direct: W,
) -> Result<Log, Failure>
where
    O: Write + Send + 'static,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(options)?;
    // For the log thread's own lines.
    let problems = Targets::new().with_default(LevelFilter::WARN);
    let direct = dispatch(options.log_format, color, problems, direct);
    let report = move |lines: u64, _: &mut O| {
        dispatcher::with_default(&direct, || {
            warn!(
                lines,
                "log lines were dropped: they could not be written in time"
            );
        });
    };
    let queue = Queue::start("log", CAPACITY, output, report)
        .map_err(|error| Failure::new(format!("can't start the thread of the log: {error}")))?;
    dispatch(options.log_format, color, filter, queue.clone()).init();
    // The default hook writes to stderr, which may block.
    panic::set_hook(Box::new(log_panic));
    Ok(Log { queue })
}

fn dispatch<W>(format: LogFormat, color: bool, filter: Targets, writer: W) -> Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = lines::layer()
        .with_writer(writer)
        .with_ansi(color)
        // The default prints with `eprintln!`, which can block, and panics if stderr is closed.
        .log_internal_errors(false);
    let filtered = Registry::default().with(filter);
    match format {
        LogFormat::Text => filtered
            .with(log.fmt_fields(EscapedFields::default()))
            .into(),
        LogFormat::Json => filtered
            .with(
                log.fmt_fields(JsonFields::new())
                    // The list of spans has the current one, too.
                    .event_format(EscapedJson(
                        Format::default().json().with_current_span(false),
                    )),
            )
            .into(),
    }
}

/// The default format of fields, escaped. All untrusted text is in fields, including the message;
/// the text around them may be colored on a terminal.
#[derive(Debug, Default)]
struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut escaping = Escaping::new(&mut writer, Notation::Text);
        self.0.format_fields(Writer::new(&mut escaping), fields)
    }
}

/// JSON that also escapes characters which JSON allows in strings but which could affect a
/// terminal.
#[derive(Debug)]
struct EscapedJson(Format<Json>);

impl<S> FormatEvent<S, JsonFields> for EscapedJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut escaping = Escaping::new(&mut writer, Notation::Json);
        self.0
            .format_event(context, Writer::new(&mut escaping), event)
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(display);
    let text = panic_text(panic.payload());
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| display(&backtrace));
    error!(location, backtrace, "panicked: {text}");
}

/// What is logged: by level, and by the module that logs it.
fn filter(options: &LoggingOptions) -> Result<Targets, Failure> {
    if let Some(directives) = env::var_os("RUST_LOG").filter(|text| !text.is_empty()) {
        let wrong = |problem: &str| {
            Failure::new(format!(
                "RUST_LOG can't be understood: {problem}; give a level, as in debug, or levels of modules, as in \
                 warn,pipe_server=debug, or unset it"
            ))
        };
        let directives = directives.to_string_lossy();
        // Otherwise it would be taken for the name of a module, and nothing would be logged.
        if directives.contains('[') {
            return Err(wrong("spans can't be filtered"));
        }
        let filter = directives.parse::<Targets>();
        let filter = filter.map_err(|error| wrong(&error.to_string()))?;
        return Ok(filter);
    }
    let level = match (options.quiet, options.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    // The level is for this server; what lies below it is logged only if it fails.
    Ok(Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("pipe_server", level))
}

/// Prints on stdout that clients can connect, for users and for programs that wait for it. Nothing
/// else is printed there but a dump, through its queue. On a thread of its own, because nobody may
/// be reading it.
pub(crate) fn announce(
    path: PathBuf,
    address: String,
    dump: Option<&Queue>,
) -> Result<(), Failure> {
    let line = move || {
        let path = path.as_os_str().as_encoded_bytes();
        [b"listening on ", path, b"\n"].concat()
    };
    if let Some(queue) = dump {
        queue.push(&line());
        info!(address, "listening");
        return Ok(());
    }
    thread::Builder::new()
        .name("announce".to_owned())
        .spawn(move || match streams::write(&line()) {
            Ok(()) => info!(address, "listening"),
            Err(error) => warn!(address, %error, "listening, but stdout can't be written to"),
        })
        .map(|_| ())
        .map_err(|error| {
            Failure::new(format!(
                "can't start the thread that prints the address: {error}"
            ))
        })
}
