//! Captures what the library logs.

use std::{
    cell::RefCell,
    fmt::{Debug, Write as _},
    sync::Once,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The lines logged on this thread since `start`, at INFO and above.
#[derive(Debug)]
pub struct Log;

impl Log {
    pub fn start() -> Self {
        // Global, since tracing caches interest for all threads: a thread without a subscriber would
        // disable a callsite for the others.
        static COLLECTOR: Once = Once::new();
        COLLECTOR.call_once(|| tracing::subscriber::set_global_default(Collector).unwrap());
        LINES.set(Some(Vec::new()));
        Self
    }

    /// The one line that contains `part`.
    pub fn line_with(&self, part: &str) -> String {
        LINES.with_borrow(|lines| {
            let lines = lines.as_deref().unwrap_or_default();
            let mut found = lines.iter().filter(|line| line.contains(part));
            match (found.next(), found.next()) {
                (Some(line), None) => line.clone(),
                _ => panic!("expected one line with {part:?}: {lines:#?}"),
            }
        })
    }
}

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        LINES.with_borrow_mut(|lines| {
            let Some(lines) = lines else { return };
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            lines.push(line.0);
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A line with the level and each field's value.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}
