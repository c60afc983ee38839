//! JSON-RPC 2.0 over message pipes, with [jsonrpsee](https://docs.rs/jsonrpsee): any `RpcModule` is
//! served on a [`PipeListener`](pipe_server::PipeListener), and jsonrpsee's `Client` connects to a
//! pipe. One message is one JSON-RPC object or batch, so other programs need no framing to take
//! part.
//!
//! ```
//! use std::future::IntoFuture;
//! use jsonrpsee::{RpcModule, core::client::ClientT, rpc_params};
//! use pipe_server::PipeListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut module = RpcModule::new(());
//! module.register_method("greet", |params, _, _| {
//!     let name: String = params.one()?;
//!     Ok::<_, jsonrpsee::types::ErrorObjectOwned>(format!("Hello, {name}"))
//! })?;
//!
//! let name = format!("jsonrpc-example-{}", std::process::id());
//! let listener = PipeListener::bind(&name)?;
//! tokio::spawn(pipe_server_jsonrpc::serve(listener, module).into_future());
//!
//! let client = pipe_server_jsonrpc::connect(&name).await?;
//! let greeting: String = client.request("greet", rpc_params!["Ada"]).await?;
//! assert_eq!(greeting, "Hello, Ada");
//! # Ok(()) }
//! ```
//!
//! Traits with jsonrpsee's `#[rpc(server, client)]` work on both sides: the example `progress` has a
//! service of three methods, a subscription and the generated client.
//!
//! # The server
//!
//! [`serve`] returns [`ServeConnections`](pipe_server::ServeConnections) of the library, with its
//! graceful shutdown, `authorize`, timeouts and limits. [`RpcServer`] has the options of JSON-RPC.
//!
//! - The requests of one client are answered as they finish, at most [`RpcServer::concurrency`] of
//!   them at once. A batch counts as one, and its calls run one after another.
//! - A request in progress is cancelled when its client disconnects, as over jsonrpsee's WebSocket.
//!   [`RpcServer::method_timeout`] limits how long each may take.
//! - The extensions of a method have the [`Peer`](pipe_server::Peer) and jsonrpsee's
//!   [`ConnectionId`](jsonrpsee_core::server::ConnectionId), the number of the connection in the log.
//! - Replies and notifications wait in a queue of [`RpcServer::max_queued_messages`] for a client
//!   that does not read them. When it is full, `send` of a subscription waits and `try_send` fails.
//!   After the [`write_timeout`](pipe_server::ServeConnections::write_timeout) the client is
//!   disconnected.
//! - When a client unsubscribes, disconnects or ends the conversation, and when the server shuts
//!   down, its subscriptions are closed. Requests that were sent before are answered.
//! - A message that is not JSON-RPC is answered with the error that the specification names. A
//!   request longer than `max_message_size` is answered with *Request is too big*, and ends the
//!   connection; a reply longer than that is replaced by *Response is too big*. A notification
//!   longer than that ends the connection.
//! - A method that panics costs its client the connection.
//! - The [`idle_timeout`](pipe_server::ServeConnections::idle_timeout) does not apply to a client
//!   that has a request in progress or a subscription.
//! - [`Stats`](pipe_server::Stats) counts each message of a client as a request, and each message
//!   sent to it, including notifications, as a reply. The handler time is the time from a request
//!   to its response.

#![warn(missing_docs)]

mod client;
mod server;

pub use crate::{
    client::{PipeReceiver, PipeSender, ReceiveError, connect, transport},
    server::{RpcServer, RpcService, Serving, defaults, serve},
};
