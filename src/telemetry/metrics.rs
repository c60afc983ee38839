//! The statistics as metrics of the `metrics` facade. The documentation of `Stats` lists their
//! names.

use metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use super::reason::Reason;
use crate::name::PipeName;

/// Handles to the metrics of one pipe. They are looked up only once, because a lookup allocates and
/// may take a lock.
pub(super) struct Metrics {
    pub(super) accepted: Counter,
    pub(super) connected: Gauge,
    pub(super) waiting: Gauge,
    pub(super) requests: Counter,
    pub(super) replies: Counter,
    pub(super) bytes_received: Counter,
    pub(super) bytes_sent: Counter,
    /// Indexed by [`Reason::index`].
    pub(super) errors: [Counter; Reason::COUNT],
    pub(super) handler_times: Histogram,
}

impl Metrics {
    /// Registers the metrics with the recorder that is installed now, each with the value 0.
    pub(super) fn new(pipe: &PipeName) -> Self {
        let pipe = SharedString::from(pipe.to_string());
        let counter = |name: &'static str, unit, text: &'static str| {
            describe_counter!(name, unit, text);
            counter!(name, "pipe" => pipe.clone())
        };
        let gauge = |name: &'static str, text: &'static str| {
            describe_gauge!(name, Unit::Count, text);
            gauge!(name, "pipe" => pipe.clone())
        };

        let errors = "pipe_server_errors_total";
        describe_counter!(errors, Unit::Count, "Errors by reason.");
        let handler_times = "pipe_server_handler_duration_seconds";
        describe_histogram!(
            handler_times,
            Unit::Seconds,
            "Time that the handler took for a request."
        );
        Self {
            accepted: counter(
                "pipe_server_connections_accepted_total",
                Unit::Count,
                "Connections accepted.",
            ),
            connected: gauge(
                "pipe_server_instances_connected",
                "Instances that serve a client.",
            ),
            waiting: gauge(
                "pipe_server_instances_waiting",
                "Instances that wait for a client.",
            ),
            requests: counter(
                "pipe_server_requests_total",
                Unit::Count,
                "Requests received.",
            ),
            replies: counter("pipe_server_replies_total", Unit::Count, "Replies sent."),
            bytes_received: counter(
                "pipe_server_received_bytes_total",
                Unit::Bytes,
                "Bytes of the requests.",
            ),
            bytes_sent: counter(
                "pipe_server_sent_bytes_total",
                Unit::Bytes,
                "Bytes of the replies.",
            ),
            errors: std::array::from_fn(|index| {
                let reason = Reason::ALL[index].as_str();
                counter!(errors, "pipe" => pipe.clone(), "reason" => reason)
            }),
            handler_times: histogram!(handler_times, "pipe" => pipe.clone()),
        }
    }
}
