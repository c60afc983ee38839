//! Many tasks look words up through one client, which connects again when the server restarts.
//!
//! Run `cargo run --example shared-client`.

use std::{future::Future, time::Duration};

use pipe_server::{
    BoxError, ClientOptions, PipeListener, PipeName, SharedCallError, SharedClient, serve,
};
use tokio::{sync::oneshot, task::JoinSet};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let name: PipeName = "shared-client".parse()?;
    let client = connect(name.clone())?;
    for round in 1..=2 {
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve_lengths(name.clone(), async { _ = stopped.await }));
        let lengths = look_up(&client, ["a", "few", "words"]).await?;
        println!("round {round}: {lengths:?}");
        drop(stop);
        server.await??;
    }
    client.shutdown().await;
    Ok(())
}

/// Answers each word with its length, until it is stopped.
async fn serve_lengths(
    name: PipeName,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), BoxError> {
    let listener = PipeListener::bind(name)?;
    serve(
        listener,
        |word: String| async move { word.len().to_string() },
    )
    .with_graceful_shutdown(stop)
    .await;
    Ok(())
}

/// A client for the whole program. It need not find the server running.
fn connect(name: PipeName) -> Result<SharedClient, BoxError> {
    let client = ClientOptions::new()
        .wait_for_server(true)
        .call_timeout(Duration::from_secs(10))
        .shared()
        .connect_lazy(name)?;
    // A word has the same length when it is asked for twice.
    Ok(client.retry_unanswered(true))
}

/// Asks for all words at once.
async fn look_up<const N: usize>(
    client: &SharedClient,
    words: [&'static str; N],
) -> Result<Vec<String>, BoxError> {
    let mut lookups = JoinSet::new();
    for word in words {
        let client = client.clone();
        lookups.spawn(async move {
            let length = client.call(word).await?;
            let length = String::from_utf8_lossy(&length);
            Ok::<_, SharedCallError>(format!("{word}: {length}"))
        });
    }
    let mut lengths = lookups
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    lengths.sort();
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_are_looked_up_before_and_after_a_restart() {
        let name = format!("shared-client-example-{}", std::process::id());
        let name: PipeName = name.parse().unwrap();
        let client = connect(name.clone()).unwrap();
        for _ in 0..2 {
            let (stop, stopped) = oneshot::channel::<()>();
            let server = serve_lengths(name.clone(), async { _ = stopped.await });
            let server = tokio::spawn(server);
            let lengths = look_up(&client, ["a", "few", "words"]).await.unwrap();
            assert_eq!(lengths, ["a: 1", "few: 3", "words: 5"]);
            drop(stop);
            server.await.unwrap().unwrap();
        }
    }
}
