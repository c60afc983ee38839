//! A server inside a test.

use std::{
    future::{Future, IntoFuture as _},
    pin::Pin,
    time::Duration,
};

use pipe_server::{Bytes, PipeListener, ServeFuture, Summary, serve};
use tokio::{runtime::Builder, sync::oneshot, task::JoinHandle, time::timeout};

/// Of the paused clock: nothing takes as long.
const HOUR: Duration = Duration::from_secs(3600);

/// A server that ends when it is told to, or with the test.
#[derive(Debug)]
pub struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Summary>,
}

impl Server {
    /// Runs the server that `start` returns for the signal that shuts it down.
    pub fn run(start: impl FnOnce(Signal) -> ServeFuture) -> Self {
        let (stop, stopped) = oneshot::channel();
        let signal = Box::pin(async { _ = stopped.await });
        let task = tokio::spawn(start(signal));
        Self { stop, task }
    }

    pub fn echo(listener: PipeListener) -> Self {
        Self::run(|signal| {
            serve(listener, |request: Bytes| async move { request })
                .with_graceful_shutdown(signal)
                .into_future()
        })
    }

    pub async fn stop(self) -> Summary {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs `scene` on a paused clock, with `seed` for what the library itself draws. Fails if it hangs
/// or leaves tasks.
pub fn play<T>(seed: u64, scene: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    let outcome = runtime.block_on(async { timeout(HOUR, scene).await });
    assert_eq!(runtime.metrics().num_alive_tasks(), 0, "tasks are left");
    outcome.expect("it hangs")
}
