//! What an operator sees of a server.

use std::{future::IntoFuture, time::Duration};

use pipe_server::{Bytes, ClientOptions, ListenerOptions, MemoryPipe, serve};
use tokio::{sync::oneshot, time::advance};

use support::log::Log;

/// The number in the field `suppressed` of a line, 0 without one.
fn suppressed(line: &str) -> u64 {
    let field = line.split("suppressed=").nth(1);
    field.map_or(0, |rest| {
        let number = rest.split(' ').next().unwrap();
        number.parse().unwrap()
    })
}

async fn send_too_long(pipe: &MemoryPipe, times: u64) {
    for _ in 0..times {
        let mut client = ClientOptions::new().connect_memory(pipe).await.unwrap();
        client.send("longer than 10 bytes").await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_can_not_fill_the_log() {
    let log = Log::start();
    let (listener, pipe) = ListenerOptions::new()
        .max_message_size(10)
        .bind_memory()
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(async { _ = stopped.await });
    let server = tokio::spawn(serving.into_future());
    let lines = || log.lines_with("the limit of 10 bytes");

    send_too_long(&pipe, 1000).await;
    assert_eq!(lines().len(), 5);
    assert!(lines().iter().all(|line| suppressed(line) == 0));

    // A second later some are logged again. The first one says how many were not.
    advance(Duration::from_secs(1)).await;
    send_too_long(&pipe, 100).await;
    assert_eq!(lines().len(), 10);
    assert_eq!(suppressed(&lines()[5]), 995);

    // Once it is quiet, the rest is accounted for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let last = log.lines_with("suppressed=95");
    assert_eq!(last.len(), 1, "{last:?}");
    assert!(last[0].starts_with("WARN"), "{last:?}");
    assert!(last[0].contains("request_too_long"), "{last:?}");

    // Also at the end.
    send_too_long(&pipe, 7).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let last = log.lines_with("suppressed=2");
    assert_eq!(last.len(), 1, "{last:?}");
}
