//! Message pipes on Tokio: a server and a client for programs on the same machine. A pipe is a
//! Windows named pipe in message mode or, on Linux, a socket that preserves message boundaries.
//! Binding a pipe and connecting to one require a Tokio runtime with I/O and time enabled.
//!
//! Other Unix systems support only pipes in memory (feature `test-util`), so that a handler can be
//! written and tested there. [`PipeListener::bind`] and [`Client::connect`] return an error of kind
//! [`Unsupported`](std::io::ErrorKind::Unsupported).
//!
//! ```no_run
//! use std::io;
//! use pipe_server::{Bytes, PipeListener};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> io::Result<()> {
//! let listener = PipeListener::bind("mynamedpipe")?; // clients can connect from here on
//! let summary = pipe_server::serve(listener, |request: Bytes| async move { request })
//!     .with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await })
//!     .await;
//! println!("{} requests answered", summary.stats.replies);
//! # Ok(()) }
//! ```
//!
//! # Where to start
//!
//! | to | use |
//! |---|---|
//! | answer requests | [`serve`](serve()), with a [`Handler`] that takes [`FromRequest`] types and returns an [`IntoReply`] type |
//! | exchange values in JSON or postcard | `Json` and `Postcard` (features `json` and `postcard`) |
//! | choose who is served | [`Access`], [`Serve::authorize`] |
//! | keep state for each client | [`Serve::on_connect`] and [`Session`] |
//! | answer several requests of one client at once | [`Serve::concurrency`] |
//! | push messages, or speak another protocol | [`serve_connections`], which passes each [`Connection`] to your code |
//! | accept clients yourself | [`PipeListener`] |
//! | serve a socket of systemd, or talk on a socketpair | `listen_on` and `connect_on`, in `os::linux` |
//! | call a server | [`Client`], or [`SharedClient`] from many tasks |
//! | start a server on demand, and end it when nobody needs it | [`ClientOptions::start_server`], [`Serve::shutdown_when_idle`] |
//! | observe a server | [`Serve::stats`], and the log: [`serve`](serve()) lists its spans, [`Reason`] its warnings and errors |
//! | test a handler | [`Handler::call`] with [`Request::new`]; pipes in memory (feature `test-util`) |
//!
//! # Guarantees
//!
//! - A message is received whole and alone, however the sender pipelines. A message longer than
//!   `max_message_size` is an error and ends the connection. It is never split.
//! - An empty message ends the conversation, as closing does. It can't be sent by mistake.
//! - The requests of one client are answered in order, one at a time unless [`Serve::concurrency`]
//!   allows more. Different clients are served concurrently.
//! - While fewer than `max_instances` clients are connected, an instance is waiting. At the limit,
//!   clients wait. The name exists as long as the server runs.
//! - A reply that was sent can still be read after the server has closed.
//! - By default only the current user can connect, and nobody can from another machine.
//! - If a handler fails or panics, only its own client is disconnected. Idle, handler and write
//!   timeouts, and a drain timeout, limit how long a client can hold resources.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `futures` | `Stream` and `Sink` for [`Connection`], its halves and [`Client`] |
//! | `json` | requests and replies in JSON, through `Json` and `Client::call_json` |
//! | `metrics` | the statistics of [`Stats`] for the recorder of the `metrics` facade, for example for Prometheus |
//! | `postcard` | requests and replies in postcard, a binary format, through `Postcard` and `Client::call_postcard` |
//! | `tower` | any `tower::Service` as a handler, through `TowerHandler`; [`SharedClient`] is one |
//! | `test-util` | pipes inside the process, through `ListenerOptions::bind_memory`, and `Faults` to make them fail |
//!
//! # Layout
//!
//! | module | contents |
//! |---|---|
//! | `os` | extensions of the types below for one system |
//! | `memory_pipe` | pipes inside the process, for tests |
//! | `serve` | [`serve`](serve()) and [`serve_connections`]: accept loop, admission, one client's conversation, shutdown |
//! | `handler` | [`Handler`], and the types that it takes and returns |
//! | `client` | [`Client`], its options, and [`SharedClient`] |
//! | `listener` | [`PipeListener`], its options and its instances |
//! | `connection` | [`Connection`] and its halves |
//! | `trust` | [`Trust`]: the servers that a client trusts |
//! | `engine` | the internal interface of an engine, and the engines; `native` chooses one; `windows/sys/` has the only unsafe code |
//! | `telemetry` | [`Stats`], [`Reason`], and the function that counts and logs an error |
//! | `access`, `peer`, `name`, `error`, `defaults` | types that all modules use |
//! | `backoff`, `mutex`, `timer` | helpers |
//!
//! A module imports only from its own row and the rows below.

#![warn(missing_docs)]
// The examples on these pages are compiled with the doc tests.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![cfg_attr(doctest, doc = include_str!("../docs/migrating.md"))]
#![cfg_attr(
    all(doctest, feature = "json"),
    doc = include_str!("../docs/typed-messages.md")
)]

#[cfg(not(any(windows, unix)))]
compile_error!("pipe-server runs on Windows and Linux, and its memory pipes on other Unix systems");

mod access;
mod backoff;
mod client;
mod connection;
pub mod defaults;
mod engine;
mod error;
mod handler;
mod listener;
mod memory_pipe;
mod mutex;
mod name;
pub mod os;
mod peer;
mod serve;
mod telemetry;
mod timer;
mod trust;

pub use bytes::Bytes;

// For the tests in `tests/`.
#[cfg(all(windows, pipe_model))]
#[doc(hidden)]
pub use crate::engine::windows::model;
#[cfg(feature = "json")]
pub use crate::handler::{Json, JsonCallError, JsonRejection};
#[cfg(feature = "postcard")]
pub use crate::handler::{Postcard, PostcardCallError, PostcardRejection};
pub use crate::{
    access::{Access, AccessError},
    client::{Client, ClientOptions, SharedClient, SharedClientOptions},
    connection::{Connection, RecvHalf, SendHalf},
    error::{
        BindError, BoxError, CallError, ConnectError, RecvError, SendError, SharedCallError,
        SharedCallErrorKind, StartError,
    },
    handler::{
        ConnectionInfo, FromRequest, Handler, IntoReply, Rejection, Reply, Request, Session,
        SessionRejection,
    },
    listener::{ListenerOptions, PipeListener},
    name::{NameError, PipeName},
    peer::{Peer, UserId, UserIdError},
    serve::{
        IntoResult, Serve, ServeConnections, ServeFuture, Shutdown, Summary, serve,
        serve_connections,
    },
    telemetry::{ErrorCounts, Reason, Stats, StatsSnapshot},
    trust::{Trust, TrustError},
};
#[cfg(feature = "tower")]
pub use crate::{client::SharedCall, handler::TowerHandler};
#[cfg(feature = "test-util")]
pub use crate::{engine::faulty::Faults, memory_pipe::MemoryPipe};
