//! One process with two doors: the same handler answers on a pipe and on an HTTP route, and one graceful shutdown
//! closes both.
//!
//! Run `cargo run` in this directory, and elsewhere `cargo run --bin pipe-client -- --pipe-name two-doors hello` and
//! `curl --data hello http://127.0.0.1:3000`.

use std::{
    future::{Future, IntoFuture},
    io,
};

use axum::{Router, routing::post};
use pipe_server::{PipeListener, Summary, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> io::Result<()> {
    let pipe = PipeListener::bind("two-doors")?;
    let http = TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on {}", pipe.path().display());
    println!("listening on http://{}", http.local_addr()?);
    let summary = run(pipe, http, async { _ = tokio::signal::ctrl_c().await }).await?;
    println!("{} requests answered on the pipe", summary.stats.replies);
    Ok(())
}

/// Takes the body of an HTTP request, or a message of the pipe.
async fn shout(text: String) -> String {
    text.to_uppercase()
}

/// Serves both until `stop` completes and their requests in flight are answered.
async fn run(
    pipe: PipeListener,
    http: TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let stopping = CancellationToken::new();
    let pipe = serve(pipe, shout).with_graceful_shutdown(stopping.clone().cancelled_owned());
    let http = axum::serve(http, Router::new().route("/", post(shout)))
        .with_graceful_shutdown(stopping.clone().cancelled_owned());
    let stop = async {
        stop.await;
        stopping.cancel();
    };
    let (summary, http, ()) = tokio::join!(pipe.into_future(), http.into_future(), stop);
    http?;
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use pipe_server::Client;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::oneshot,
    };

    use super::*;

    async fn post(address: SocketAddr, body: &str) -> String {
        let mut http = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        http.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        http.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn one_handler_answers_at_both_doors_and_one_shutdown_closes_them() {
        let name = format!("axum-example-{}", std::process::id());
        let pipe = PipeListener::bind(&name).unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = http.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(run(pipe, http, async { _ = stopped.await }));

        let mut client = Client::connect(&name).await.unwrap();
        assert_eq!(client.call("hello").await.unwrap(), "HELLO");
        let response = post(address, "hello").await;
        assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
        assert!(response.ends_with("HELLO"), "{response}");

        stop.send(()).unwrap();
        let summary = server.await.unwrap().unwrap();
        assert_eq!((summary.stats.replies, summary.aborted), (1, 0));
        Client::connect(&name).await.unwrap_err();
        TcpStream::connect(address).await.unwrap_err();
    }
}
