//! Captures what the library logs.

use std::{
    cell::{Cell, RefCell},
    fmt::{Debug, Write as _},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_core::span::Current;

thread_local! {
    static LEVEL: Cell<LevelFilter> = const { Cell::new(LevelFilter::OFF) };
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static SPANS: RefCell<Vec<(Id, String)>> = const { RefCell::new(Vec::new()) };
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
    static METADATA: RefCell<Vec<(Id, &'static Metadata<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// The lines logged on this thread since `start`, at INFO and above.
#[derive(Debug)]
pub struct Log;

impl Log {
    pub fn start() -> Self {
        Self::start_at(Level::INFO)
    }

    /// Also the lines and spans of a lower level.
    pub fn start_at(level: Level) -> Self {
        // Global, since tracing caches interest for all threads: a thread without a subscriber
        // would disable a callsite for the others.
        static COLLECTOR: Once = Once::new();
        COLLECTOR.call_once(|| tracing::subscriber::set_global_default(Collector).unwrap());
        LEVEL.set(LevelFilter::from_level(level));
        LINES.take();
        SPANS.take();
        METADATA.take();
        Self
    }

    /// All lines that contain `part`.
    pub fn lines_with(&self, part: &str) -> Vec<String> {
        LINES.with_borrow(|lines| {
            let found = lines.iter().filter(|line| line.contains(part));
            found.cloned().collect()
        })
    }

    /// The one line that contains `part`.
    pub fn line_with(&self, part: &str) -> String {
        match &self.lines_with(part)[..] {
            [line] => line.clone(),
            _ => panic!("not one line with {part:?}: {:#?}", self.lines_with("")),
        }
    }

    /// The spans called `name`, each with the fields that it has by now.
    pub fn spans(&self, name: &str) -> Vec<String> {
        SPANS.with_borrow(|spans| {
            let spans = spans.iter().map(|(_, span)| span);
            let found = spans.filter(|span| span.split(' ').nth(1) == Some(name));
            found.cloned().collect()
        })
    }
}

struct Collector;

impl Subscriber for Collector {
    /// Each thread has a level of its own.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= LEVEL.get()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let id = Id::from_u64(COUNT.fetch_add(1, Ordering::Relaxed));
        let metadata = span.metadata();
        let mut line = Line(format!("{} {}", metadata.level(), metadata.name()));
        span.record(&mut line);
        SPANS.with_borrow_mut(|spans| spans.push((id.clone(), line.0)));
        METADATA.with_borrow_mut(|known| known.push((id.clone(), metadata)));
        id
    }

    fn record(&self, id: &Id, fields: &Record<'_>) {
        SPANS.with_borrow_mut(|spans| {
            let Some((_, span)) = spans.iter_mut().find(|(known, _)| known == id) else {
                return;
            };
            let mut line = Line(std::mem::take(span));
            fields.record(&mut line);
            *span = line.0;
        });
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        if let Some((names, fields)) = entered() {
            write!(line.0, "{fields} in {names}").unwrap();
        }
        LINES.with_borrow_mut(|lines| lines.push(line.0));
    }

    fn current_span(&self) -> Current {
        let Some(id) = ENTERED.with_borrow(|entered| entered.last().cloned()) else {
            return Current::none();
        };
        METADATA.with_borrow(|known| {
            let metadata = known.iter().find(|(span, _)| *span == id);
            metadata.map_or_else(Current::none, |(_, metadata)| Current::new(id, metadata))
        })
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| assert_eq!(entered.pop().as_ref(), Some(id)));
    }
}

/// The names of the spans that this thread is in, outermost first, and their fields.
fn entered() -> Option<(String, String)> {
    let entered = ENTERED.with_borrow(|entered| entered.clone());
    let (mut names, mut fields) = (Vec::new(), String::new());
    SPANS.with_borrow(|spans| {
        for id in &entered {
            let Some((_, span)) = spans.iter().find(|(known, _)| known == id) else {
                continue;
            };
            let (_, span) = span.split_once(' ').unwrap();
            let end = span.find(' ').unwrap_or(span.len());
            names.push(span[..end].to_owned());
            fields.push_str(&span[end..]);
        }
    });
    (!names.is_empty()).then(|| (names.join(":"), fields))
}

/// A line with the level and each field's value.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}
