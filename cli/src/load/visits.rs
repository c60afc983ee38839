//! Clients that connect, make one request and close, over and over.

use std::time::Instant;

use pipe_server::Bytes;

use super::{
    conversation::content,
    latencies::{Latencies, latencies, nanoseconds},
    options::Options,
    progress::Count,
    report::Report,
    run::{self, Until, Work},
    transport::{Receiver, Sender, Transport},
};
use crate::exit::Failure;

/// Connects over and over and reports the rate.
pub(crate) async fn measure<T: Transport>(
    options: &Options,
    transport: T,
) -> Result<Report, Failure> {
    let content = content(options.size);
    let clients = (0..options.clients).map(|_| Visitor {
        transport: transport.clone(),
        content,
        connecting: latencies(),
        visiting: latencies(),
    });
    let results = run::run(options, clients.collect(), transport.address()).await?;

    let (mut connecting, mut visiting) = (latencies(), latencies());
    for (connects, visits) in &results.measured {
        connecting += connects;
        visiting += visits;
    }
    let mut report = Report::new();
    report.number("clients", options.clients.into());
    report.size("size", options.size);
    report.rate("connections", visiting.len(), results.time);
    report.latencies("connect ", &connecting);
    report.latencies("visit ", &visiting);
    Ok(report)
}

/// Connects, makes one request and waits for its reply.
pub(crate) async fn visit<T: Transport>(
    transport: &T,
    content: &'static [u8],
) -> Result<(T::Sender, T::Receiver, Instant), Failure> {
    let failure =
        |error: &str| Failure::new(format!("no reply from {}: {error}", transport.address()));
    let (mut sender, mut receiver) = transport.connect().await?;
    let connected = Instant::now();
    let sent = sender.send(Bytes::from_static(content)).await;
    sent.map_err(|error| failure(&error))?;
    match receiver.recv().await {
        Ok(Some(_)) => Ok((sender, receiver, connected)),
        Ok(None) => Err(failure("the server closed the pipe and did not reply")),
        Err(error) => Err(failure(&error)),
    }
}

struct Visitor<T> {
    transport: T,
    content: &'static [u8],
    connecting: Latencies,
    /// From the start of the connect to the end of the close.
    visiting: Latencies,
}

impl<T: Transport> Work for Visitor<T> {
    type Measured = (Latencies, Latencies);

    async fn work(&mut self, until: Until, count: &Count) -> Result<(), Failure> {
        let mut visits = 0;
        loop {
            let begun = Instant::now();
            if !until.allows(visits, begun) {
                return Ok(());
            }
            visits += 1;
            let (sender, receiver, connected) = visit(&self.transport, self.content).await?;
            drop((sender, receiver));
            self.connecting
                .saturating_record(nanoseconds(connected - begun));
            self.visiting
                .saturating_record(nanoseconds(begun.elapsed()));
            count.add();
        }
    }

    fn take(&mut self) -> (Latencies, Latencies) {
        (
            std::mem::replace(&mut self.connecting, latencies()),
            std::mem::replace(&mut self.visiting, latencies()),
        )
    }
}
