//! JSON-RPC over pipes of every engine, with jsonrpsee's own client and with raw messages.

use std::{future::IntoFuture as _, time::Duration};

use jsonrpsee::{
    core::client::{Client, ClientBuilder},
    types::ErrorObjectOwned,
};
use pipe_server::{ListenerOptions, PipeListener};
use pipe_server_jsonrpc::{RpcServer, transport};
use support::{Kind, Pipe, server::Server};
use tokio::time::sleep;

mod calls;
mod hostile;
mod limits;
#[cfg(target_os = "linux")]
mod python;
mod server;
mod subscriptions;
#[cfg(windows)]
mod win32;

/// Serves with the options of `rpc`.
fn start(kind: Kind, rpc: RpcServer) -> (Server, Pipe) {
    let (listener, pipe) = bind(kind);
    let server = Server::run(|signal| {
        let serving = rpc.serve(listener).with_graceful_shutdown(signal);
        serving.into_future()
    });
    (server, pipe)
}

/// The limit is one that every engine can have.
fn bind(kind: Kind) -> (PipeListener, Pipe) {
    kind.bind(ListenerOptions::new().max_message_size(LIMIT))
}

const LIMIT: usize = 4000;

async fn connect(pipe: &Pipe) -> Client {
    let (sender, receiver) = transport(pipe.connect().await);
    ClientBuilder::default().build_with_tokio(sender, receiver)
}

/// Sends a message as it is, and returns the reply.
async fn raw(client: &mut pipe_server::Client, message: &str) -> String {
    let reply = client.call(message.to_owned()).await.unwrap();
    String::from_utf8(reply.to_vec()).unwrap()
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(1)).await;
    }
}

fn failure(message: &str) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(1, message, None::<()>)
}
