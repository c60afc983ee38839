//! Restarts of a server under load lose nothing.

use std::{
    collections::HashMap,
    future::IntoFuture,
    io,
    sync::{Arc, Mutex},
};

use pipe_server::{Bytes, ClientOptions, PipeListener, SharedClient, serve};
use tokio::{
    sync::{Notify, oneshot},
    task::{JoinSet, yield_now},
};

use support::{in_time, message, unique_name};

const RESTARTS: usize = if cfg!(pipe_model) { 5 } else { 100 };

const TASKS: usize = 20;

/// The requests that each server executes at least before it is shut down.
const REQUESTS: usize = 50;

/// The requests that were executed, with the number of times, and the last request of each task.
#[derive(Default)]
struct Executed {
    times: Mutex<HashMap<Bytes, usize>>,
    has_more: Notify,
}

impl Executed {
    async fn answer(&self, request: Bytes) -> io::Result<Bytes> {
        let is_slow = {
            let mut times = self.times.lock().unwrap();
            *times.entry(request.clone()).or_default() += 1;
            times.len() % 3 == 0
        };
        self.has_more.notify_one();
        if is_slow {
            // The next requests wait in the pipe.
            yield_now().await;
        }
        Ok(reply_to(&request))
    }

    fn count(&self) -> usize {
        self.times.lock().unwrap().len()
    }
}

fn reply_to(request: &[u8]) -> Bytes {
    request.iter().rev().copied().collect()
}

/// The request with this number of a task. Some are long.
fn request(task: usize, number: usize) -> Bytes {
    let text = format!("{task} {number} ");
    let rest = message(number, if number % 7 == 0 { 20_000 } else { 30 });
    [text.as_bytes(), &rest].concat().into()
}

/// Restarts a server again and again while tasks call it.
async fn restart(options: ClientOptions, concurrency: usize) {
    let name = unique_name();
    let executed = Arc::new(Executed::default());
    let client = options.shared().connect_lazy(&name.text).unwrap();
    let mut listener = Some(PipeListener::bind(&name.text).unwrap());
    let mut tasks = JoinSet::new();
    let (end, _) = tokio::sync::watch::channel(false);
    for task in 0..TASKS {
        tasks.spawn(call_until(end.subscribe(), client.clone(), task));
    }
    for restart in 1..=RESTARTS {
        let executing = Arc::clone(&executed);
        let handler = move |request: Bytes| {
            let executed = Arc::clone(&executing);
            async move { executed.answer(request).await }
        };
        let listener = listener
            .take()
            .unwrap_or_else(|| PipeListener::bind(&name.text).unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve(listener, handler)
            .concurrency(concurrency)
            .with_graceful_shutdown(async { _ = stopped.await });
        let server = tokio::spawn(serving.into_future());
        while executed.count() < restart * REQUESTS {
            executed.has_more.notified().await;
        }
        if restart == RESTARTS {
            end.send_replace(true);
            let mut calls = 0;
            while let Some(called) = tasks.join_next().await {
                calls += called.unwrap();
            }
            assert_eq!(executed.count(), calls, "a call was not executed");
        }
        stop.send(()).unwrap();
        let summary = server.await.unwrap();
        assert_eq!(summary.cut_off, 0);
        assert_eq!(summary.requests, summary.replies);
    }
    let times = executed.times.lock().unwrap();
    for (request, times) in &*times {
        assert_eq!(*times, 1, "{:?}", &request[..10]);
    }
}

/// Calls until told to end. Returns the number of calls.
async fn call_until(
    end: tokio::sync::watch::Receiver<bool>,
    client: SharedClient,
    task: usize,
) -> usize {
    for number in 0.. {
        let request = request(task, number);
        match client.call(request.clone()).await {
            Ok(reply) => assert!(reply == reply_to(&request), "task {task}, call {number}"),
            Err(error) => panic!("task {task}, call {number}: {error:?}"),
        }
        if *end.borrow() {
            return number + 1;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_hundred_graceful_restarts_lose_no_call() {
    in_time(restart(ClientOptions::new(), 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_graceful_restarts_lose_no_call_on_several_threads() {
    in_time(restart(ClientOptions::new(), 4)).await;
}
