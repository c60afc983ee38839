//! Load over one connection per client, with a configurable number of requests in flight.

use std::{
    collections::VecDeque,
    pin::pin,
    time::{Duration, Instant},
};

use pipe_server::Bytes;
use tokio::{task::JoinSet, time::sleep};

use super::{
    latencies::{Latencies, latencies, nanoseconds},
    options::{Options, Verify},
    progress::Count,
    report::Report,
    run::{self, Until, Work, unwind},
    transport::{Receiver, Sender, Transport},
};
use crate::exit::Failure;

/// Loads the server and reports the rate of its replies.
pub(crate) async fn measure<T: Transport>(
    options: &Options,
    transport: T,
) -> Result<Report, Failure> {
    let content = content(options.size);
    let mut connecting = JoinSet::new();
    for number in 0..options.clients {
        let transport = transport.clone();
        let (depth, pause, verify) = (options.depth as usize, options.pause, options.verify);
        connecting.spawn(async move {
            let (sender, receiver) = transport.connect().await?;
            Ok(ConversingClient::<T> {
                sender,
                receiver,
                content,
                pause,
                depth,
                ledger: Ledger {
                    client: number,
                    address: transport.address().to_owned(),
                    verify,
                    requests: 0,
                    outstanding: VecDeque::with_capacity(depth),
                    latencies: latencies(),
                },
            })
        });
    }
    let mut clients = Vec::with_capacity(options.clients as usize);
    while let Some(connected) = connecting.join_next().await {
        clients.push(unwind(connected)?);
    }
    let results = run::run(options, clients, transport.address()).await?;

    let mut all = latencies();
    for latencies in &results.measured {
        all += latencies;
    }
    let mut report = Report::new();
    report.number("clients", options.clients.into());
    report.number("depth", options.depth.into());
    report.size("size", options.size);
    report.rate("messages", all.len(), results.time);
    report.latencies("", &all);
    Ok(report)
}

/// The content of a request. Leaked, so that requests share no reference count between threads.
pub(crate) fn content(size: usize) -> &'static [u8] {
    let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
    content.leak()
}

/// A client and its connection.
struct ConversingClient<T: Transport> {
    sender: T::Sender,
    receiver: T::Receiver,
    content: &'static [u8],
    pause: Duration,
    depth: usize,
    ledger: Ledger,
}

impl<T: Transport> Work for ConversingClient<T> {
    type Measured = Latencies;

    async fn work(&mut self, until: Until, count: &Count) -> Result<(), Failure> {
        let Self {
            sender,
            receiver,
            ledger,
            ..
        } = self;
        let mut begun = 0;
        loop {
            let now = Instant::now();
            if ledger.outstanding.len() < self.depth && until.allows(begun, now) {
                if begun > 0 && !self.pause.is_zero() {
                    sleep(self.pause).await;
                }
                begun += 1;
                let request = ledger.request(self.content);
                let mut sending = pin!(sender.send(request));
                loop {
                    tokio::select! {
                        biased;
                        sent = &mut sending => {
                            sent.map_err(|error| ledger.failure(&error))?;
                            break;
                        }
                        // While the server does not read, it may be waiting for its reply to be read.
                        reply = receiver.recv(), if !ledger.outstanding.is_empty() => {
                            ledger.reply(reply, count)?;
                        }
                    }
                }
            } else if ledger.outstanding.is_empty() {
                return Ok(());
            } else {
                ledger.reply(receiver.recv().await, count)?;
            }
        }
    }

    fn take(&mut self) -> Latencies {
        std::mem::replace(&mut self.ledger.latencies, latencies())
    }
}

/// What one client has sent, and what was answered.
struct Ledger {
    client: u32,
    address: String,
    verify: Option<Verify>,
    requests: u64,
    outstanding: VecDeque<SentRequest>,
    latencies: Latencies,
}

/// A request in flight.
struct SentRequest {
    begun: Instant,
    expected: Option<Bytes>,
}

impl Ledger {
    /// The next request, recorded as outstanding: its reply can arrive before the send is known to
    /// be complete.
    fn request(&mut self, content: &'static [u8]) -> Bytes {
        let request = match self.verify {
            None => Bytes::from_static(content),
            Some(Verify::Echo) => unlike_any_other(content, self.client, self.requests),
        };
        self.requests += 1;
        self.outstanding.push_back(SentRequest {
            expected: self.verify.map(|Verify::Echo| request.clone()),
            begun: Instant::now(),
        });
        request
    }

    fn reply(
        &mut self,
        reply: Result<Option<Bytes>, String>,
        count: &Count,
    ) -> Result<(), Failure> {
        let reply = match reply {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(self.failure("the server closed the pipe and did not reply")),
            Err(error) => return Err(self.failure(&error)),
        };
        let Some(request) = self.outstanding.pop_front() else {
            return Err(self.failure("a reply arrived without a request"));
        };
        self.latencies
            .saturating_record(nanoseconds(request.begun.elapsed()));
        match request.expected {
            Some(expected) if expected != reply => {
                let number = self.requests - self.outstanding.len() as u64;
                Err(self.failure(&format!(
                    "the reply to request {number} is not the request: {}",
                    difference(&expected, &reply)
                )))
            }
            _ => {
                count.add();
                Ok(())
            }
        }
    }

    fn failure(&self, error: &str) -> Failure {
        Failure::new(format!(
            "client {} at {}: {error}",
            self.client + 1,
            self.address
        ))
    }
}

/// A request that begins with its own number and its client's, as far as its length allows, so that
/// a lost, duplicated or foreign reply is detected.
fn unlike_any_other(content: &[u8], client: u32, request: u64) -> Bytes {
    let mut message = content.to_vec();
    let numbers = request
        .to_le_bytes()
        .into_iter()
        .chain(client.to_le_bytes());
    for (byte, number) in message.iter_mut().zip(numbers) {
        *byte = number;
    }
    message.into()
}

/// Describes how two messages differ.
fn difference(expected: &[u8], reply: &[u8]) -> String {
    if expected.len() != reply.len() {
        return format!("{} bytes instead of {}", reply.len(), expected.len());
    }
    let place = expected
        .iter()
        .zip(reply)
        .position(|(one, other)| one != other);
    let place = place.unwrap_or(0);
    format!(
        "byte {place} is {} instead of {}",
        reply[place], expected[place]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_differ_by_number_and_by_client() {
        let content = content(64);
        let first = unlike_any_other(content, 0, 0);
        assert_eq!(first.len(), 64);
        assert_ne!(first, unlike_any_other(content, 0, 1));
        assert_ne!(first, unlike_any_other(content, 1, 0));
        assert_eq!(unlike_any_other(&[0], 7, 300), vec![44]);
    }

    #[test]
    fn a_difference_is_named() {
        assert_eq!(difference(b"abc", b"ab"), "2 bytes instead of 3");
        assert_eq!(difference(b"abc", b"aBc"), "byte 1 is 66 instead of 98");
    }
}
