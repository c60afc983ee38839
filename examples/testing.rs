//! Tests a handler: by calling it, and on a pipe inside the process with paused time.
//!
//! Run `cargo test --example testing --features test-util`. The program itself serves the handler.

use std::time::Duration;

use pipe_server::{BoxError, Peer, PipeListener, serve};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("greeter")?;
    println!("listening on {}", listener.path().display());
    serve(listener, greet).await;
    Ok(())
}

/// Greets the client after a delay.
async fn greet(peer: Peer, name: String) -> Result<String, BoxError> {
    if name.is_empty() || name.len() > 10 {
        return Err("a name has 1 to 10 bytes".into());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(format!("hello {name}, you are {}", peer.user()))
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use pipe_server::{Handler, ListenerOptions, Request};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_handler_is_called_like_a_function() {
        let peer = Peer::current().unwrap();
        let request = Request::new("Ann", peer.clone());
        let reply = Handler::call(&greet, request).await.unwrap();
        let expected = format!("hello Ann, you are {}", peer.user());
        assert_eq!(reply.message().unwrap(), expected.as_bytes());

        let request = Request::new("Bartholomew", peer);
        let error = Handler::call(&greet, request).await.unwrap_err();
        assert_eq!(error.to_string(), "a name has 1 to 10 bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn options_of_the_server_are_tested_in_memory() {
        let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let serving = serve(listener, greet).handler_timeout(Duration::from_secs(4));
        tokio::spawn(serving.into_future());
        let mut client = pipe.connect().await.unwrap();
        client.send("Ann").await.unwrap();
        // With paused time, four seconds pass at once.
        assert!(client.recv().await.unwrap().is_none());
    }
}
