//! What happens on a connection to a NATS server, from the subscription to the end.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    select,
    sync::mpsc,
    task::coop::consume_budget,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tracing::debug;

use super::{
    ForwardError,
    connect::NatsConnection,
    link::{NatsLink, Outgoing},
    protocol::{
        LONGEST_HEADERS, MOST_PINGS, MessageHead, NatsError, Operation, Receiver, ServerInfo,
    },
    reply,
};

/// How often the connection is checked. It is given up after three times without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const MOST_UNANSWERED: u32 = 3;

/// How long the server may read nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// No further request is taken while so many bytes are being written.
const WRITE_AT_ONCE: usize = 64 * 1024;

pub(super) struct Session<'a> {
    link: &'a NatsLink,
    info: Mutex<ServerInfo>,
    /// The PINGs that the server has not answered.
    unanswered: AtomicU32,
}

impl<'a> Session<'a> {
    /// Publishes requests and passes replies on until the connection fails. Returns why it did, and
    /// what the server said last about itself.
    pub(super) async fn run(
        link: &'a NatsLink,
        connection: NatsConnection,
        requests: &mut mpsc::Receiver<Outgoing>,
    ) -> (NatsError, ServerInfo) {
        let session = Self {
            link,
            info: Mutex::new(connection.info),
            unanswered: AtomicU32::new(0),
        };
        let (pings, answers) = mpsc::channel(MOST_PINGS);
        let result = select! {
            result = session.receive(connection.receiver, pings) => result,
            result = session.send(connection.writer, answers, requests) => result,
        };
        let Err(error) = result;
        (error, session.into_info())
    }

    fn into_info(self) -> ServerInfo {
        self.info
            .into_inner()
            .unwrap_or_else(|error| error.into_inner())
    }

    fn max_payload(&self) -> u64 {
        let info = self.info.lock();
        info.unwrap_or_else(|error| error.into_inner()).max_payload
    }

    async fn receive<R: AsyncRead + Unpin>(
        &self,
        mut receiver: Receiver<R>,
        pings: mpsc::Sender<()>,
    ) -> Result<Never, NatsError> {
        loop {
            // Much may have been received at once.
            consume_budget().await;
            match receiver.operation().await? {
                Operation::Ping => {
                    let answered = pings.try_send(());
                    answered.map_err(|_| NatsError::TooManyPings)?;
                }
                Operation::Pong => self.unanswered.store(0, Ordering::Relaxed),
                Operation::Ok => {}
                Operation::Info(info) => {
                    if info.lame_duck {
                        self.link.complain(
                            "the NATS server of --forward is about to shut down (lame duck mode), and will close the \
                             connection",
                        );
                    }
                    *self.info.lock().unwrap_or_else(|error| error.into_inner()) = info;
                }
                Operation::Error(text) => self.link.complain_of(&text),
                Operation::Message(head) => self.deliver(&mut receiver, &head).await?,
            }
        }
    }

    /// Passes a reply on to its request. The others, and what is too long, are not kept.
    async fn deliver<R: AsyncRead + Unpin>(
        &self,
        receiver: &mut Receiver<R>,
        head: &MessageHead,
    ) -> Result<(), NatsError> {
        let (length, limit) = (head.length(), self.max_payload());
        if length > limit {
            return Err(NatsError::MessageTooLong { length, limit });
        }
        let Some(token) = self.link.token(&head.subject) else {
            debug!("a reply arrived too late, or a second time");
            return receiver.skip(head).await;
        };
        let limit = self.link.limit as u64;
        let too_long = if head.payload > limit {
            ForwardError::ReplyTooLong {
                length: head.payload,
                limit,
            }
        } else if head.headers > LONGEST_HEADERS {
            ForwardError::HeadersTooLong {
                length: head.headers,
                limit: LONGEST_HEADERS,
            }
        } else {
            let (headers, payload) = receiver.body(head).await?;
            let reply = reply::check(&headers, payload, &self.link.subject);
            self.link.answer(token, reply);
            return Ok(());
        };
        self.link.answer(token, Err(too_long));
        receiver.skip(head).await
    }

    async fn send<W: AsyncWrite + Unpin>(
        &self,
        mut writer: W,
        mut answers: mpsc::Receiver<()>,
        requests: &mut mpsc::Receiver<Outgoing>,
    ) -> Result<Never, NatsError> {
        let mut output = format!("SUB {}* 1\r\n", self.link.inbox).into_bytes();
        let mut check = every(PING_INTERVAL);
        loop {
            write(&mut writer, &output).await?;
            output.clear();
            output.shrink_to(WRITE_AT_ONCE);
            select! {
                Some(()) = answers.recv() => output.extend(b"PONG\r\n"),
                Some(request) = requests.recv() => self.publish(request, &mut output),
                _ = check.tick() => {
                    if self.unanswered.fetch_add(1, Ordering::Relaxed) == MOST_UNANSWERED {
                        return Err(NatsError::Silent(PING_INTERVAL * MOST_UNANSWERED));
                    }
                    output.extend(b"PING\r\n");
                }
            }
            while output.len() < WRITE_AT_ONCE {
                if answers.try_recv().is_ok() {
                    output.extend(b"PONG\r\n");
                } else if let Ok(request) = requests.try_recv() {
                    self.publish(request, &mut output);
                } else {
                    break;
                }
            }
        }
    }

    /// Writes the request to `output`, unless nobody waits for the reply any more.
    fn publish(&self, request: Outgoing, output: &mut Vec<u8>) {
        let Outgoing { token, payload } = request;
        let (length, limit) = (payload.len(), self.max_payload());
        if length as u64 > limit {
            let error = ForwardError::RequestTooLong { length, limit };
            self.link.answer(token, Err(error));
        } else if self.link.publishes(token) {
            let NatsLink { subject, inbox, .. } = self.link;
            // Writing to a `Vec` does not fail.
            _ = write!(output, "PUB {subject} {inbox}{token} {length}\r\n");
            output.extend_from_slice(&payload);
            output.extend(b"\r\n");
        }
    }
}

/// The result of what goes on until it fails.
enum Never {}

fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, mut output: &[u8]) -> Result<(), NatsError> {
    let not_reading = |_| NatsError::NotReading(WRITE_TIMEOUT);
    while !output.is_empty() {
        let written = timeout(WRITE_TIMEOUT, writer.write(output)).await;
        match written.map_err(not_reading)?? {
            0 => return Err(NatsError::Closed),
            written => output = &output[written..],
        }
    }
    let flushed = timeout(WRITE_TIMEOUT, writer.flush()).await;
    Ok(flushed.map_err(not_reading)??)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex, split};

    use super::*;
    use crate::forward::nats::{connect::Stream, target::Target};

    /// How a connection to `server` ends, which can hold so many bytes that nobody has read.
    async fn end(server: impl FnOnce(DuplexStream), capacity: usize) -> NatsError {
        let (stream, other) = duplex(capacity);
        server(other);
        let (read, writer) = split(Box::new(stream) as Box<dyn Stream>);
        let connection = NatsConnection {
            receiver: Receiver::new(read),
            writer,
            info: ServerInfo {
                max_payload: 1000,
                tls_required: false,
                connect_urls: Vec::new(),
                lame_duck: false,
            },
        };
        let target = Target::parse("nats://localhost/a").unwrap();
        let (link, mut requests) = NatsLink::new(&target, 1000);
        Session::run(&link, connection, &mut requests).await.0
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_no_ping_is_given_up() {
        let mut held = None;
        let error = end(|server| held = Some(server), 1000).await;
        assert!(matches!(error, NatsError::Silent(_)), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_nothing_is_given_up() {
        let mut held = None;
        let error = end(|server| held = Some(server), 10).await;
        assert!(matches!(error, NatsError::NotReading(_)), "{error}");
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_server() {
        let error = end(drop, 1000).await;
        assert!(
            matches!(error, NatsError::Closed | NatsError::Io(_)),
            "{error}"
        );
    }
}
