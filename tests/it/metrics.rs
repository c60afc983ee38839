//! What the feature `metrics` adds.

use std::{
    collections::BTreeMap,
    future::IntoFuture,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use pipe_server::{BoxError, Bytes, Connection, ListenerOptions, Reason, StatsSnapshot, serve};
use tokio::{sync::oneshot, task::yield_now};

use support::{Kind, on_every_engine};

on_every_engine! {
    metrics_are_the_figures,
    the_series_of_a_pipe_are_there_from_the_start_and_no_client_adds_one,
}

/// The metrics of a recorder.
struct Recorded {
    snapshotter: Snapshotter,
    /// A snapshot sets the recorder to 0, so this has the sums. A histogram counts its values.
    sums: BTreeMap<String, f64>,
    units: BTreeMap<String, Unit>,
}

impl Recorded {
    /// Has `bind` register its metrics with a recorder that is not installed after it.
    fn by<T>(bind: impl FnOnce() -> T) -> (Self, T) {
        let recorder = DebuggingRecorder::new();
        let bound = with_local_recorder(&recorder, bind);
        let recorded = Self {
            snapshotter: recorder.snapshotter(),
            sums: BTreeMap::new(),
            units: BTreeMap::new(),
        };
        (recorded, bound)
    }

    fn update(&mut self) {
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let labels = key.labels().map(|label| (label.key(), label.value()));
            let name = named(key.name(), &labels.collect::<Vec<_>>());
            assert!(description.is_some(), "{name}");
            self.units.insert(key.name().to_owned(), unit.unwrap());
            *self.sums.entry(name).or_default() += match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(level) => level.0,
                DebugValue::Histogram(values) => {
                    assert!(
                        values
                            .iter()
                            .all(|seconds| (0.0..60.0).contains(&seconds.0))
                    );
                    values.len() as f64
                }
            };
        }
    }

    fn check(&mut self, pipe: &str, stats: &StatsSnapshot, handled: u64) {
        self.update();
        let get = |name| self.sums[&named(name, &[("pipe", pipe)])] as u64;
        assert_eq!(
            get("pipe_server_connections_accepted_total"),
            stats.accepted
        );
        assert_eq!(
            get("pipe_server_instances_connected"),
            stats.connected as u64
        );
        assert_eq!(get("pipe_server_instances_waiting"), stats.waiting as u64);
        assert_eq!(get("pipe_server_requests_total"), stats.requests);
        assert_eq!(get("pipe_server_replies_total"), stats.replies);
        assert_eq!(
            get("pipe_server_received_bytes_total"),
            stats.bytes_received
        );
        assert_eq!(get("pipe_server_sent_bytes_total"), stats.bytes_sent);
        assert_eq!(get("pipe_server_handler_duration_seconds"), handled);
        for &reason in Reason::ALL {
            let labels = [("pipe", pipe), ("reason", reason.as_str())];
            let count = self.sums[&named("pipe_server_errors_total", &labels)];
            assert_eq!(count as u64, stats.errors.get(reason), "{reason}");
        }
    }
}

fn named(name: &str, labels: &[(&str, &str)]) -> String {
    format!("{name} {labels:?}")
}

async fn metrics_are_the_figures(kind: Kind) {
    let (mut recorded, (listener, pipe)) = Recorded::by(|| kind.bind(ListenerOptions::new()));
    let name = listener.name().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let handler = |request: Bytes| async move {
        match &request[..] {
            b"fail" => Err(BoxError::from("as asked for")),
            b"panic" => panic!("as asked for"),
            b"quiet" => Ok(None),
            _ => Ok(Some(request.slice(1..))),
        }
    };
    let serving = serve(listener, handler).with_graceful_shutdown(async { _ = stopped.await });
    let stats = serving.stats();
    let server = tokio::spawn(serving.into_future());

    let mut client = pipe.connect().await;
    client.send("quiet").await.unwrap();
    assert_eq!(client.call("12345").await.unwrap(), "2345");
    // On the tokio engine a reply is counted once it was read.
    while stats.snapshot().replies == 0 {
        yield_now().await;
    }
    let now = stats.snapshot();
    assert_eq!((now.accepted, now.connected), (1, 1));
    assert_eq!((now.bytes_received, now.bytes_sent), (10, 4));
    recorded.check(&name, &now, 2);

    for request in ["fail", "fail", "panic"] {
        assert!(pipe.connect().await.call(request).await.is_err());
    }
    drop(client);
    stop.send(()).unwrap();
    let end = server.await.unwrap().stats;
    assert_eq!((end.accepted, end.connected, end.requests), (4, 0, 5));
    assert_eq!((end.errors.get(Reason::Handler), end.panics), (2, 1));
    recorded.check(&name, &end, 5);
}

async fn the_series_of_a_pipe_are_there_from_the_start_and_no_client_adds_one(kind: Kind) {
    let (mut recorded, (listener, pipe)) = Recorded::by(|| kind.bind(ListenerOptions::new()));
    let name = listener.name().to_string();
    recorded.check(&name, &listener.stats().snapshot(), 0);
    let series = 8 + Reason::ALL.len();
    assert_eq!(recorded.sums.len(), series);
    for (name, unit) in &recorded.units {
        let expected = match name {
            name if name.contains("bytes") => Unit::Bytes,
            name if name.contains("seconds") => Unit::Seconds,
            _ => Unit::Count,
        };
        assert_eq!(*unit, expected, "{name}");
    }

    tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
    for number in 0..20 {
        let mut client = pipe.connect().await;
        client.call(format!("request {number}")).await.unwrap();
    }
    recorded.update();
    assert_eq!(recorded.sums.len(), series);
}

#[tokio::test(start_paused = true)]
async fn two_listeners_of_one_name_add_up() {
    let bind = || ListenerOptions::new().backlog(3).bind_memory().unwrap();
    let (mut recorded, (one, other)) = Recorded::by(|| (bind(), bind()));
    let mut waiting = || {
        recorded.update();
        recorded.sums[&named("pipe_server_instances_waiting", &[("pipe", "memory")])]
    };
    assert_eq!(waiting(), 6.0);
    drop(one);
    assert_eq!(waiting(), 3.0);
    drop(other);
    assert_eq!(waiting(), 0.0);
}

/// What a recorder drops when a gauge changes.
type Held = Arc<Mutex<Option<Connection>>>;

struct DroppingRecorder(Held);

impl GaugeFn for DroppingRecorder {
    fn increment(&self, _: f64) {
        let held = self.0.lock().unwrap().take();
        drop(held);
    }

    fn decrement(&self, value: f64) {
        self.increment(value);
    }

    fn set(&self, value: f64) {
        self.increment(value);
    }
}

impl Recorder for DroppingRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(AtomicU64::new(0)))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Self(Arc::clone(&self.0))))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_may_drop_a_connection_when_a_gauge_changes() {
    let held = Held::default();
    let recorder = DroppingRecorder(Arc::clone(&held));
    let bind = || ListenerOptions::new().max_instances(3).bind_memory();
    let (mut listener, pipe) = with_local_recorder(&recorder, bind).unwrap();

    let _one = pipe.connect().await.unwrap();
    *held.lock().unwrap() = Some(listener.accept().await.unwrap());
    let _other = pipe.connect().await.unwrap();
    let other = listener.accept().await.unwrap();
    assert!(held.lock().unwrap().is_none());
    assert_eq!(listener.stats().snapshot().connected, 1);

    let _third = pipe.connect().await.unwrap();
    *held.lock().unwrap() = Some(listener.accept().await.unwrap());
    drop(other);
    assert!(held.lock().unwrap().is_none());
    assert_eq!(listener.stats().snapshot().connected, 0);
}
