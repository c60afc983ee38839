//! The server that the options ask for.

use std::{
    future::{Future, IntoFuture as _, Ready, ready},
    sync::Arc,
};

#[cfg(windows)]
use pipe_server::os::windows::ServeExt as _;
use pipe_server::{
    Connection, Handler, Peer, PipeListener, PipeName, ServeFuture, Shutdown, serve,
    serve_connections,
};
use pipe_server_cli::exit::Failure;
use tracing::info;

#[cfg(feature = "nats")]
use crate::forward::nats::Forward;
use crate::{
    answer::Answer,
    capacity::Capacity,
    dump::{Dump, Dumped},
    forward::{Destination, pipe::PipeForward},
    options::Options,
};

/// The settings of a server besides its listener.
pub(crate) struct Serving<'a> {
    pub(crate) options: &'a Options,
    pub(crate) capacity: &'a Capacity,
    pub(crate) dump: Option<Dump>,
}

/// Starts a server with the options that `serve` and `serve_connections` share. A macro, because
/// their builders have the same methods but no common trait.
macro_rules! run_with_options {
    ($serving:expr, $options:expr, $signal:expr) => {{
        let (options, mut serving) = ($options, $serving);
        serving = serving
            .drain_timeout(options.limits.drain_timeout.0)
            .shutdown_when_idle(options.limits.exit_when_idle.0)
            .idle_timeout(options.limits.idle_timeout.0)
            .write_timeout(options.limits.write_timeout.0)
            .with_graceful_shutdown($signal);
        if let Some(limit) = options.max_connections_per_user() {
            serving = serving.max_connections_per_user(limit);
        }
        if let Some(authorize) = authorize(options) {
            serving = serving.authorize(authorize);
        }
        serving.into_future()
    }};
}

impl Serving<'_> {
    /// Starts a server that shuts down at `signal`.
    pub(crate) fn start(
        self,
        listener: PipeListener,
        destination: Option<Destination>,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Result<ServeFuture, Failure> {
        let answer = match destination {
            Some(Destination::Pipe(name)) => {
                if name.to_path() == listener.path() {
                    return Err(Failure::usage(format!(
                        "--forward: {name} is the pipe of this server itself: name another one"
                    )));
                }
                return Ok(self.forwarding(listener, name, signal));
            }
            #[cfg(feature = "nats")]
            Some(Destination::Nats(target)) => {
                if self.options.answer.trust.is_some() {
                    return Err(Failure::usage(
                        "--trust is for --forward pipe:NAME: with NATS use a URL with tls://"
                            .to_owned(),
                    ));
                }
                let limit = self.options.answer.forward_limit;
                Answer::Forward(Forward::start(target, limit, listener.max_message_size()))
            }
            None => Answer::new(self.options, self.capacity, listener.max_message_size()),
        };
        Ok(match self.dump {
            None => answering(listener, self.options, answer, signal),
            Some(dump) => answering(listener, self.options, Dumped::new(answer, dump), signal),
        })
    }

    /// A server whose clients talk to the one of the pipe `name`.
    fn forwarding(
        self,
        listener: PipeListener,
        name: PipeName,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> ServeFuture {
        let options = self.options;
        let forward = Arc::new(PipeForward::new(name, options, &listener, self.dump));
        info!(address = forward.address(), "forwarding");
        let pass_on = move |client: Connection, _: Shutdown| {
            let forward = Arc::clone(&forward);
            async move { forward.run(client).await }
        };
        run_with_options!(serve_connections(listener, pass_on), options, signal)
    }
}

/// A server whose requests `answer` answers.
fn answering<H: Handler>(
    listener: PipeListener,
    options: &Options,
    answer: H,
    signal: impl Future<Output = ()> + Send + 'static,
) -> ServeFuture {
    let serving = serve(listener, answer)
        .concurrency(options.answer.concurrency)
        .handler_timeout(options.handler_timeout())
        .max_buffered_bytes(options.max_buffered_bytes())
        // The result is useless once the client has disconnected.
        .cancel_on_disconnect(options.answer.waits());
    // The other answers never block.
    #[cfg(windows)]
    let serving = serving.inline_completions(!options.answer.waits());
    run_with_options!(serving, options, signal)
}

/// The check for `--allow-user`, if it was given.
fn authorize(
    options: &Options,
) -> Option<impl Fn(Peer) -> Ready<Result<(), &'static str>> + Send + Sync + use<>> {
    let allowed = options.pipe.allow_user.clone();
    (!allowed.is_empty()).then_some(move |peer: Peer| {
        ready(match allowed.contains(peer.user()) {
            true => Ok(()),
            false => Err("add --allow-user to serve this user"),
        })
    })
}
