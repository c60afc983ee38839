//! A server that sends unprompted: it forwards each client's messages to all others.
//!
//! Run `cargo run --example push`, and connect two clients to the pipe `chat`.

use std::{future::Future, sync::Arc};

use pipe_server::{
    BoxError, Bytes, Connection, PipeListener, Shutdown, Summary, serve_connections,
};
use tokio::sync::broadcast;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("chat")?;
    println!("listening on {}", listener.path().display());
    run(listener, async { _ = tokio::signal::ctrl_c().await }).await;
    Ok(())
}

async fn run(listener: PipeListener, stop: impl Future<Output = ()> + Send + 'static) -> Summary {
    let room = Arc::new(broadcast::Sender::new(64));
    serve_connections(
        listener,
        move |connection: Connection, shutdown: Shutdown| {
            chat(connection, shutdown, Arc::clone(&room))
        },
    )
    .with_graceful_shutdown(stop)
    .await
}

type Said = (u64, Bytes);

async fn chat(
    mut connection: Connection,
    shutdown: Shutdown,
    room: Arc<broadcast::Sender<Said>>,
) -> Result<(), BoxError> {
    let mut others = room.subscribe();
    connection.send("welcome").await?;
    loop {
        tokio::select! {
            // `recv` is cancel safe: a partly received message is completed by the next call.
            said = connection.recv() => match said? {
                Some(text) => _ = room.send((connection.id(), text)),
                // The client has left, or the server is shutting down.
                None => break,
            },
            said = others.recv() => match said {
                Ok((speaker, text)) if speaker != connection.id() => connection.send(text).await?,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
        }
    }
    if shutdown.is_shutdown() {
        connection.send("the server is shutting down").await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pipe_server::Client;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_one_client_says_the_others_are_told() {
        let name = format!("push-example-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(run(listener, async { _ = stopped.await }));
        let mut speaker = Client::connect(&name).await.unwrap();
        let mut listener = Client::connect(&name).await.unwrap();
        for client in [&mut speaker, &mut listener] {
            assert_eq!(client.recv().await.unwrap().unwrap(), "welcome");
        }
        speaker.send("hello").await.unwrap();
        assert_eq!(listener.recv().await.unwrap().unwrap(), "hello");
        stop.send(()).unwrap();
        for client in [&mut speaker, &mut listener] {
            let last = client.recv().await.unwrap().unwrap();
            assert_eq!(last, "the server is shutting down");
        }
        assert_eq!(server.await.unwrap().served, 2);
    }
}
