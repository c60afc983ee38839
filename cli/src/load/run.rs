//! Many clients at once: warm-up, measurement, and a check that the server still answers.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Barrier,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};

use super::{
    options::{Limit, Options},
    progress::{Count, Progress},
};
use crate::exit::Failure;

/// A client's work.
pub(crate) trait Work: Send + 'static {
    /// What it has measured.
    type Measured: Send + 'static;

    /// Works until `until` is reached, and leaves nothing in flight.
    fn work(
        &mut self,
        until: Until,
        count: &Count,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Returns what was measured since the last call.
    fn take(&mut self) -> Self::Measured;
}

/// When a client has done enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    requests: u64,
    deadline: Option<Instant>,
}

impl Until {
    /// The end for a client that starts now.
    fn new(limit: Limit) -> Self {
        match limit {
            Limit::Requests(requests) => Self {
                requests,
                deadline: None,
            },
            Limit::Time(time) => Self {
                requests: u64::MAX,
                deadline: Some(Instant::now() + time),
            },
        }
    }

    /// Whether a client that has started `requests` requests may start another one.
    pub(crate) fn allows(&self, requests: u64, now: Instant) -> bool {
        requests < self.requests && self.deadline.is_none_or(|deadline| now < deadline)
    }
}

/// The results of all clients.
pub(crate) struct RunResults<M> {
    pub(crate) measured: Vec<M>,
    /// From the first client's start to the last one's end.
    pub(crate) time: Duration,
}

/// Warms up every client, and measures them once all are warm.
pub(crate) async fn run<W: Work>(
    options: &Options,
    clients: Vec<W>,
    address: &str,
) -> Result<RunResults<W::Measured>, Failure> {
    let limit = options.limit();
    let number = clients.len() as u64;
    let unit = match options.connect_rate {
        true => "connections",
        false => "messages",
    };
    let mut progress = Progress::new(limit, unit, clients.len());
    let warm = Arc::new(Barrier::new(clients.len()));
    let mut tasks = JoinSet::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        let limit = match limit {
            Limit::Requests(all) => {
                Limit::Requests(all / number + u64::from((index as u64) < all % number))
            }
            time @ Limit::Time(_) => time,
        };
        let (warm_up, warm, count) = (options.warm_up, Arc::clone(&warm), progress.count(index));
        tasks.spawn(async move {
            client.work(Until::new(warm_up), &count).await?;
            warm.wait().await;
            _ = client.take();
            count.reset();
            let begun = Instant::now();
            client.work(Until::new(limit), &count).await?;
            Ok((client.take(), begun, Instant::now()))
        });
    }
    let ended = watch(tasks, options, &mut progress, address).await?;
    let begun = ended.iter().map(|&(_, begun, _)| begun).min();
    let time = ended.iter().map(|&(_, _, end)| end).max();
    Ok(RunResults {
        time: time
            .zip(begun)
            .map_or(Duration::ZERO, |(end, begun)| end - begun),
        measured: ended.into_iter().map(|(measured, ..)| measured).collect(),
    })
}

/// Waits for all tasks. The first failure aborts the others, and so does a server that answers
/// nobody. One clock serves all clients, because a timer per request would be part of the
/// measurement.
async fn watch<T: 'static>(
    mut tasks: JoinSet<Result<T, Failure>>,
    options: &Options,
    progress: &mut Progress,
    address: &str,
) -> Result<Vec<T>, Failure> {
    let patience = options.timeout.0.map(|time| time + options.pause);
    let mut clock = interval(Duration::from_millis(100));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut results = Vec::with_capacity(tasks.len());
    let mut answered = (0, Instant::now());
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => results.push(unwind(ended)?),
                None => return Ok(results),
            },
            _ = clock.tick() => {
                let now = progress.show();
                if now != answered.0 {
                    answered = (now, Instant::now());
                } else if let Some(time) = patience.filter(|&time| answered.1.elapsed() > time) {
                    let time = humantime::format_duration(time);
                    return Err(Failure::new(format!(
                        "no reply from {address} within {time}: see --timeout"
                    )));
                }
            }
        }
    }
}

/// The result of a task. Resumes its panic, if any.
pub(crate) fn unwind<T>(ended: Result<T, JoinError>) -> T {
    match ended {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
