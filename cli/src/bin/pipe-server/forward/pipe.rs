//! `--forward pipe:NAME`: each client gets a connection of its own to the server of another pipe,
//! and messages are passed on in both directions.

use std::{collections::VecDeque, pin::pin, time::Duration};

use pipe_server::{
    BoxError, Bytes, Client, ClientOptions, ConnectError, Connection, PipeListener, PipeName,
    RecvError, RecvHalf, SendError, SendHalf, Stats,
};
use pipe_server_cli::{
    exit::{self, chain},
    recording::Sender,
    runtime::within,
};
use tokio::{select, time::sleep};
use tracing::debug;

use crate::{dump::Dump, options::Options};

/// The number of messages that are received while the server is busy, to notice a client that has
/// left: most clients send one and wait for the reply.
const EARLY: usize = 2;

/// The interval at which to look whether a client has left, when receiving can't tell.
const CHECK: Duration = Duration::from_secs(1);

/// The clients' way to the other pipe.
///
/// Buffers one message per client and direction, and [`EARLY`] ones of a client while the server is
/// busy, besides the buffers of the system and the engine. A side that sends more waits until the
/// other one reads.
#[derive(Debug)]
pub(crate) struct PipeForward {
    name: PipeName,
    address: String,
    client: ClientOptions,
    /// The time limit for connecting and, after a client's failure, for the replies to its earlier
    /// requests.
    limit: Option<Duration>,
    /// The time limit of the server for reading a message.
    write_timeout: Option<Duration>,
    dump: Option<Dump>,
    stats: Stats,
}

/// The reason for which a client is disconnected, for the log.
#[derive(Debug, thiserror::Error)]
enum PipeForwardError {
    #[error("can't forward: {0}")]
    Connect(String),
    // Their sources are part of the text: the log would take them for errors of the client.
    #[error("receiving from {0} failed: {1}")]
    FromServer(String, String),
    #[error("sending to {0} failed: {1}")]
    ToServer(String, String),
    #[error("receiving a message of the client failed")]
    FromClient(#[source] RecvError),
    #[error("sending a message to the client failed")]
    ToClient(#[source] SendError),
}

/// The way in which one side ended its messages, without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It may still be reading.
    HalfClosed,
    Closed,
}

impl PipeForward {
    /// Forwards the messages of the clients of `listener` to the pipe `name`.
    pub(crate) fn new(
        name: PipeName,
        options: &Options,
        listener: &PipeListener,
        dump: Option<Dump>,
    ) -> Self {
        let limit = options.handler_timeout();
        let trust = options.answer.trust.clone().unwrap_or_default();
        Self {
            address: name.to_path().display().to_string(),
            name,
            client: ClientOptions::new()
                .connect_timeout(limit)
                .max_message_size(listener.max_message_size())
                .trust(trust),
            limit,
            write_timeout: options.limits.write_timeout.0,
            dump,
            stats: listener.stats(),
        }
    }

    /// The address of the other pipe.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Passes the messages of one client on, and those of its server back, until one of them ends
    /// the conversation.
    pub(crate) async fn run(&self, client: Connection) -> Result<(), BoxError> {
        let (receiver, to_client) = client.into_split();
        let mut from_client = FromClient {
            receiver,
            early: VecDeque::new(),
        };
        let server = select! {
            // A server that is not busy gets what was sent before the client left.
            biased;
            server = self.client.connect(&self.name) => server,
            () = from_client.left() => {
                debug!(address = self.address, "the client left while the server was busy");
                return Ok(());
            }
        };
        let server = server.map_err(|error| self.connect_error(&error))?;
        Ok(self.pass(from_client, to_client, server).await?)
    }

    fn connect_error(&self, error: &ConnectError) -> PipeForwardError {
        let text = match error {
            // The flag of that name is for clients.
            ConnectError::Remote { .. } => format!(
                "{} is on another machine: forward to a pipe of this one",
                self.address
            ),
            error => exit::connect_failure(error, &self.name)
                .message()
                .to_owned(),
        };
        PipeForwardError::Connect(text)
    }

    async fn pass(
        &self,
        from_client: FromClient,
        to_client: SendHalf,
        server: Client,
    ) -> Result<(), PipeForwardError> {
        let connection = to_client.id();
        let dump = self.dump.as_ref().map(Dump::connection);
        let dump = |sender, message: &Bytes| {
            if let Some(dump) = &dump {
                dump.record(connection, sender, message);
            }
        };
        let (from_server, to_server) = server.into_split();
        let mut requests = pin!(self.requests(from_client, to_server, &dump));
        let mut replies = pin!(self.replies(from_server, to_client, &dump));
        select! {
            (ended, from_client) = &mut requests => match ended {
                Ok(Ended::Closed) => Ok(()),
                Ok(Ended::HalfClosed) => select! {
                    ended = replies => ended.map(drop),
                    () = hung_up(&from_client.receiver) => Ok(()),
                },
                // The client gets the replies to its earlier requests, as from any server.
                Err(error) => {
                    select! {
                        _ = within(self.limit, replies) => {}
                        () = hung_up(&from_client.receiver) => {}
                    }
                    Err(error)
                }
            },
            ended = &mut replies => match ended? {
                Ended::Closed => {
                    debug!(address = self.address, "the server closed the connection");
                    Ok(())
                }
                Ended::HalfClosed => requests.await.0.map(drop),
            },
        }
    }

    /// Passes the messages of the client on, until it ends them or the server takes no more.
    async fn requests(
        &self,
        mut from_client: FromClient,
        to_server: SendHalf,
        dump: impl Fn(Sender, &Bytes),
    ) -> (Result<Ended, PipeForwardError>, FromClient) {
        let ended = self.pass_requests(&mut from_client, to_server, dump).await;
        (ended, from_client)
    }

    async fn pass_requests(
        &self,
        from_client: &mut FromClient,
        mut to_server: SendHalf,
        dump: impl Fn(Sender, &Bytes),
    ) -> Result<Ended, PipeForwardError> {
        loop {
            match from_client.recv().await {
                Ok(Some(message)) => {
                    dump(Sender::Client, &message);
                    self.stats.count_request(message.len());
                    let sent = within(self.write_timeout, to_server.send(message)).await;
                    let Some(sent) = sent else {
                        return Err(self.not_read());
                    };
                    match sent {
                        Ok(()) => {}
                        // The server's end decides how the client's connection ends: replies to
                        // earlier requests may be on their way.
                        Err(SendError::Closed) => {
                            from_client.receiver.close();
                            return Ok(Ended::HalfClosed);
                        }
                        Err(error) => return Err(self.sending_failed(&error)),
                    }
                }
                Ok(None) if !from_client.has_closed() => {
                    // A server that is gone ends the replies, too.
                    _ = to_server.finish().await;
                    return Ok(Ended::HalfClosed);
                }
                Ok(None) => return Ok(Ended::Closed),
                Err(error) => {
                    _ = to_server.finish().await;
                    return Err(PipeForwardError::FromClient(error));
                }
            }
        }
    }

    /// Passes the messages of the server on, until it ends them.
    async fn replies(
        &self,
        mut from_server: RecvHalf,
        mut to_client: SendHalf,
        dump: impl Fn(Sender, &Bytes),
    ) -> Result<Ended, PipeForwardError> {
        loop {
            let received = from_server.recv().await;
            match received.map_err(|error| self.receiving_failed(&error))? {
                Some(message) => {
                    // Before it is sent: the client may answer at once.
                    dump(Sender::Server, &message);
                    let bytes = message.len() as u64;
                    if let Err(error) = to_client.send(message).await {
                        // The client's requests are still passed on until it is known to have
                        // closed. A server that can't send might not receive them.
                        if let SendError::Closed = error {
                            while let Ok(Some(_)) = from_server.recv().await {}
                        }
                        return Err(PipeForwardError::ToClient(error));
                    }
                    self.stats.count_replies(1, bytes);
                }
                None if from_server.is_half_closed() => {
                    _ = to_client.finish().await;
                    return Ok(Ended::HalfClosed);
                }
                None => return Ok(Ended::Closed),
            }
        }
    }

    fn receiving_failed(&self, error: &RecvError) -> PipeForwardError {
        let hint = match error {
            RecvError::TooLong { .. } => ": see --max-message-size",
            _ => "",
        };
        PipeForwardError::FromServer(self.address.clone(), chain(error) + hint)
    }

    fn not_read(&self) -> PipeForwardError {
        let time = self.write_timeout.unwrap_or_default();
        let problem = format!("it read nothing for {time:?} (--write-timeout)");
        PipeForwardError::ToServer(self.address.clone(), problem)
    }

    fn sending_failed(&self, error: &SendError) -> PipeForwardError {
        PipeForwardError::ToServer(self.address.clone(), chain(error))
    }
}

/// The messages of one client.
struct FromClient {
    receiver: RecvHalf,
    /// Received before they could be passed on.
    early: VecDeque<Result<Option<Bytes>, RecvError>>,
}

impl FromClient {
    /// Receives the next message. Cancel safe.
    async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        match self.early.pop_front() {
            Some(received) => received,
            None => self.receiver.recv().await,
        }
    }

    /// Whether the client has closed once there are no more messages, and not only ended them, as a
    /// shutdown does.
    fn has_closed(&self) -> bool {
        !self.receiver.is_half_closed()
    }

    /// Completes when the client has closed. Cancel safe. Receives up to [`EARLY`] messages.
    async fn left(&mut self) {
        while self.early.len() < EARLY && !matches!(self.early.back(), Some(Ok(None) | Err(_))) {
            let received = self.receiver.recv().await;
            let is_end = matches!(received, Ok(None));
            self.early.push_back(received);
            if is_end && self.has_closed() {
                return;
            }
        }
        hung_up(&self.receiver).await;
    }
}

/// Completes when the other side has closed, though messages from it may not be received any more.
async fn hung_up(receiver: &RecvHalf) {
    while !receiver.is_hung_up() {
        sleep(CHECK).await;
    }
}
