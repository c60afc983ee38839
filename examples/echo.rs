//! Answers every request with the request itself, until Ctrl-C.
//!
//! Run `cargo run --example echo`, and in another terminal
//! `cargo run --bin pipe-client -- --pipe-name echo hello`.

use std::future::Future;

use pipe_server::{BoxError, Bytes, PipeListener, Summary, serve};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("echo")?;
    println!("listening on {}", listener.path().display());
    let summary = run(listener, async { _ = tokio::signal::ctrl_c().await }).await;
    println!("{} requests answered", summary.stats.replies);
    Ok(())
}

async fn run(listener: PipeListener, stop: impl Future<Output = ()> + Send + 'static) -> Summary {
    serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(stop)
        .await
}

#[cfg(test)]
mod tests {
    use pipe_server::Client;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_echoes_until_it_is_stopped() {
        let name = format!("echo-example-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(run(listener, async { _ = stopped.await }));
        let mut client = Client::connect(&name).await.unwrap();
        assert_eq!(client.call("hello").await.unwrap(), "hello");
        stop.send(()).unwrap();
        assert_eq!(server.await.unwrap().stats.replies, 1);
    }
}
