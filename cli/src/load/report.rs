//! The results, for people and for programs.

use std::time::Duration;

use serde_json::{Map, Value};

use super::latencies::Latencies;
use crate::{exit::Failure, streams};

/// Named figures, in display order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    name: String,
    text: String,
    /// Its name for programs, which includes the unit, and its value in that unit.
    key: String,
    value: Value,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn number(&mut self, name: &str, number: u64) {
        self.push(name, grouped(number), "", number.into());
    }

    pub(crate) fn size(&mut self, name: &str, bytes: usize) {
        self.push(name, exact_size(bytes), "", bytes.into());
    }

    pub(crate) fn memory(&mut self, name: &str, bytes: f64) {
        self.push(name, size(bytes), "", bytes.into());
    }

    /// Adds a count, the time it took, and the rate per second.
    pub(crate) fn rate(&mut self, name: &str, number: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        let rate = if seconds > 0.0 {
            number as f64 / seconds
        } else {
            0.0
        };
        self.number(name, number);
        self.push("time", format!("{seconds:.2} s"), " s", seconds.into());
        self.push(
            &format!("{name}/s"),
            grouped(rate.round() as u64),
            "",
            rate.into(),
        );
    }

    pub(crate) fn latencies(&mut self, of: &str, latencies: &Latencies) {
        for (name, value) in [
            ("p50", latencies.value_at_quantile(0.5)),
            ("p90", latencies.value_at_quantile(0.9)),
            ("p99", latencies.value_at_quantile(0.99)),
            ("max", latencies.max()),
        ] {
            let microseconds = value as f64 / 1e3;
            self.push(
                &format!("{of}{name}"),
                latency(microseconds),
                " us",
                microseconds.into(),
            );
        }
    }

    fn push(&mut self, name: &str, text: String, unit: &str, value: Value) {
        let key = format!("{name}{unit}")
            .replace(' ', "_")
            .replace("/s", "_per_second");
        self.figures.push(Figure {
            name: name.to_owned(),
            text,
            key,
            value,
        });
    }

    /// Prints and flushes it: the reader may be a program.
    pub(crate) fn print(&self, json: bool) -> Result<(), Failure> {
        let text = if json { self.json() } else { self.table() };
        streams::print(text.as_bytes())
    }

    /// A line of names and a line of figures, right-aligned.
    fn table(&self) -> String {
        let (mut names, mut texts) = (String::new(), String::new());
        for Figure { name, text, .. } in &self.figures {
            let gap = if names.is_empty() { 0 } else { 2 };
            let width = gap + name.chars().count().max(text.chars().count());
            names += &format!("{name:>width$}");
            texts += &format!("{text:>width$}");
        }
        format!("{names}\n{texts}\n")
    }

    fn json(&self) -> String {
        let figures = self.figures.iter();
        let object: Map<_, _> = figures
            .map(|figure| (figure.key.clone(), figure.value.clone()))
            .collect();
        format!("{}\n", Value::Object(object))
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that gives a whole number.
fn exact_size(bytes: usize) -> String {
    let units = [("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|&(_, unit)| bytes % unit == 0) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None => format!("{} B", grouped(bytes as u64)),
    }
}

/// Bytes in the largest unit that gives one or more.
fn size(bytes: f64) -> String {
    let units = [
        ("GiB", 1_073_741_824.0),
        ("MiB", 1_048_576.0),
        ("KiB", 1024.0),
    ];
    match units.into_iter().find(|&(_, unit)| bytes.abs() >= unit) {
        Some((name, unit)) => format!("{} {name}", three_digits(bytes / unit)),
        None => format!("{} B", three_digits(bytes)),
    }
}

fn latency(microseconds: f64) -> String {
    match microseconds {
        1e6.. => format!("{} s", three_digits(microseconds / 1e6)),
        1e3.. => format!("{} ms", three_digits(microseconds / 1e3)),
        _ => format!("{} µs", three_digits(microseconds)),
    }
}

/// Three significant digits, or more before the point; no trailing zeros on a whole number.
fn three_digits(number: f64) -> String {
    let places = match number.abs() {
        _ if number.fract() == 0.0 => 0,
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{number:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn sizes_and_latencies_have_the_unit_that_suits() {
        assert_eq!(exact_size(65_536), "64 KiB");
        assert_eq!(exact_size(4095), "4,095 B");
        assert_eq!(size(64.0), "64 B");
        assert_eq!(size(-1536.0), "-1.50 KiB");
        assert_eq!(latency(12.34), "12.3 µs");
        assert_eq!(latency(1234.0), "1.23 ms");
        assert_eq!(latency(2e6), "2 s");
    }

    #[test]
    fn the_table_is_aligned_and_the_object_has_units_in_its_names() {
        let mut report = Report::new();
        report.number("clients", 8);
        report.rate("messages", 123_456, Duration::from_secs(2));
        assert_eq!(
            report.table(),
            "clients  messages    time  messages/s\n      8   123,456  2.00 s      61,728\n"
        );
        assert_eq!(
            report.json(),
            "{\"clients\":8,\"messages\":123456,\"messages_per_second\":61728.0,\"time_s\":2.0}\n"
        );
    }
}
