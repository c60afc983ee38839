//! Message pipes on Tokio: a server and a client for programs on the same machine. A pipe is a
//! Windows named pipe in message mode or, on Linux, a socket that preserves message boundaries.
//! Binding a pipe and connecting to one require a Tokio runtime with I/O and time enabled. Other
//! Unix systems support only pipes in memory (feature `test-util`); there `bind` and `connect` fail
//! as [`Unsupported`](std::io::ErrorKind::Unsupported).
//!
//! ```no_run
//! use pipe_server::{Bytes, PipeListener};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
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
//! | choose who is served | [`Access`], [`Serve::authorize`] |
//! | share state among all handlers | [`Serve::with_state`], and [`State`] as an argument |
//! | keep state for each client | [`Serve::on_connect`] and [`Session`] |
//! | answer several requests of one client at once | [`Serve::concurrency`] |
//! | push messages, or speak another protocol | [`serve_connections`], which passes each [`Connection`] to your code; [`PipeListener`] to accept clients yourself |
//! | serve a socket of systemd, or talk on a socketpair | `listen_on` and `connect_on`, in `os::linux` |
//! | call a server | [`Client`], or [`SharedClient`] from many tasks |
//! | start a server on demand, and end it when nobody needs it | [`ClientOptions::start_server`], [`Serve::shutdown_when_idle`] |
//! | observe a server | [`Serve::stats`], and the log: [`serve`](serve()) lists its spans, [`Reason`] its warnings and errors |
//! | test a handler | [`Handler::call`] with [`Request::new`]; pipes in memory (feature `test-util`) |
//!
//! No option panics: one that is out of range is an error of `bind` ([`BindError::Option`]) or
//! `connect`. A server can't fail, so its options accept every value, and each says what 0 means.
//!
//! # Guarantees
//!
//! - A message is received whole and alone, however the sender pipelines. One that is longer than
//!   `max_message_size` is never split: it is an error and ends the connection.
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
//! | `json` | typed messages in JSON: `Json`, and `call_json`, `send_json` and `recv_json` of clients and connections |
//! | `metrics` | the statistics of [`Stats`] for the recorder of the `metrics` facade, for example for Prometheus |
//! | `postcard` | the same in postcard, a binary format |
//! | `tower` | any `tower::Service` as a handler, through `TowerHandler`; [`SharedClient`] is one |
//! | `test-util` | pipes inside the process, through `ListenerOptions::bind_memory`, and `Faults` to make them fail |
//!
//! The public API has items of these crates, and of no others: `bytes` 1, with `futures`
//! `futures-core` 0.3 and `futures-sink` 0.3, with `json` `serde_core` 1 and `serde_json` 1, with
//! `postcard` `serde_core` 1 and `postcard` 1, and with `tower` `tower-service` 0.3. With `metrics`
//! the recorder is one of `metrics` 0.24. An incompatible version of one of them is a breaking
//! release.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]
// docs.rs has all features. Without one of them, links to what it adds are plain text.
#![cfg_attr(
    not(all(
        feature = "futures",
        feature = "json",
        feature = "metrics",
        feature = "postcard",
        feature = "test-util",
        feature = "tower",
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

mod access;
mod backoff;
mod client;
mod connection;
mod debug;
pub mod defaults;
#[cfg(doctest)]
mod doc_tests;
mod engine;
mod error;
mod handler;
mod listener;
mod memory_pipe;
mod name;
pub mod os;
mod peer;
mod serve;
mod sync;
mod telemetry;
mod timer;
mod trust;

pub use bytes::Bytes;

// For the tests in `tests/`.
#[cfg(all(windows, pipe_model))]
#[doc(hidden)]
pub use crate::engine::windows::model;
pub use crate::{
    access::{Access, AccessError, CustomAccess},
    client::*,
    connection::{Connection, RecvHalf, ReuniteError, SendHalf},
    error::{
        BindError, BoxError, CallError, ConnectError, RecvError, SendError, SharedCallError,
        SharedCallErrorKind, StartError,
    },
    handler::*,
    listener::{ListenerOptions, PipeListener},
    name::{NameError, PipeName},
    peer::{Peer, UserId, UserIdError},
    serve::*,
    telemetry::{ErrorCounts, Reason, Stats, StatsSnapshot},
    trust::{Trust, TrustError},
};
#[cfg(feature = "test-util")]
pub use crate::{engine::faulty::Faults, memory_pipe::MemoryPipe};
