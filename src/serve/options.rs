//! The options that [`Serve`](crate::Serve) and [`ServeConnections`](crate::ServeConnections) share.

use std::{
    future::{Future, pending},
    pin::Pin,
    time::Duration,
};

use super::{
    admission::{AdmissionOptions, UserLimit},
    into_result::IntoResult,
};
use crate::{debug::debug_fields, defaults, peer::Peer};

/// The future whose completion begins a graceful shutdown.
pub(super) type ShutdownSignal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The options of a server, whatever it does with its clients.
pub(crate) struct ServerOptions {
    pub(super) admission: AdmissionOptions,
    pub(super) timeouts: Timeouts,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) signal: ShutdownSignal,
    /// The time without a client after which the server shuts down.
    pub(super) shutdown_when_idle: Option<Duration>,
    /// Set only by `os::windows`.
    pub(crate) inline_completions: bool,
}

/// How long a client may be inactive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) idle: Option<Duration>,
    pub(super) write: Option<Duration>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            admission: AdmissionOptions::default(),
            timeouts: Timeouts {
                idle: None,
                write: Some(defaults::WRITE_TIMEOUT),
            },
            drain_timeout: Some(defaults::DRAIN_TIMEOUT),
            signal: Box::pin(pending()),
            shutdown_when_idle: None,
            inline_completions: false,
        }
    }
}

impl ServerOptions {
    pub(super) fn set_max_connections_per_user(&mut self, connections: Option<usize>) {
        self.admission.user_limit = match connections {
            Some(limit) => UserLimit::AllUsers(limit),
            None => UserLimit::Unlimited,
        };
    }

    // The peer is passed by value: a future can't borrow from the argument of the closure that
    // creates it.
    pub(super) fn set_authorize<A, Deciding>(&mut self, authorize: A)
    where
        A: Fn(Peer) -> Deciding + Send + Sync + 'static,
        Deciding: Future<Output: IntoResult> + Send + 'static,
    {
        const {
            assert!(
                Deciding::Output::CAN_REFUSE,
                "authorize has to return a bool or a Result: with () it would admit everyone"
            );
        }
        self.admission.authorize = Some(Box::new(move |peer| {
            let deciding = authorize(peer);
            Box::pin(async move { deciding.await.into_result() })
        }));
    }
}

debug_fields! {
    ServerOptions,
    |options|
    user_limit = options.admission.user_limit,
    timeouts = options.timeouts,
    drain_timeout = options.drain_timeout,
    shutdown_when_idle = options.shutdown_when_idle,
    inline_completions = options.inline_completions
}
