//! One client's replies: batching, flushing and counting.

use std::{
    future::poll_fn,
    mem,
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tracing::trace;

use super::{failure::Failure, timeout::within};
use crate::{connection::SendHalf, error::SendError, stats::Stats};

/// How long a reply may wait to be sent together with the next one: about as long as a task may run without
/// yielding. Only a handler that runs longer without yielding delays it more.
const LONGEST_WAIT: Duration = Duration::from_micros(100);

/// How many bytes of replies may wait for the next one. This is more than a socket accepts at once by default,
/// so a client that reads gets as much per call as without a limit.
const BATCH_BYTES: usize = 256 * 1024;

/// The replies to one client. The engine may send several together. They wait in it only while further
/// requests are available and can be answered immediately.
pub(super) struct Replies {
    sender: SendHalf,
    write_timeout: Option<Duration>,
    /// How many were fed to the engine and not flushed.
    unsent: u64,
    /// Their total length.
    unsent_bytes: usize,
    /// When the first of them began to wait.
    waiting_since: Option<Instant>,
    sent: u64,
    stats: Stats,
}

impl Replies {
    pub(super) fn new(sender: SendHalf, write_timeout: Option<Duration>, stats: Stats) -> Self {
        Self {
            sender,
            write_timeout,
            unsent: 0,
            unsent_bytes: 0,
            waiting_since: None,
            sent: 0,
            stats,
        }
    }

    /// How many are known to be sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The total length of those not flushed.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Feeds one to the engine.
    pub(super) async fn feed(&mut self, reply: Bytes) -> Result<(), Failure> {
        let length = reply.len();
        trace!(bytes = length, "reply");
        let fed = within(self.write_timeout, &mut pin!(self.sender.feed(reply))).await;
        match fed {
            Ok(Ok(())) => {}
            Ok(Err(SendError::Empty)) => return Err(Failure::EmptyReply),
            Ok(Err(error @ SendError::TooLong { .. })) => return Err(Failure::Reply(error)),
            Ok(Err(error)) => return Err(Failure::Send(error)),
            Err(time) => return Err(Failure::WriteTimeout(time)),
        }
        self.unsent += 1;
        self.unsent_bytes += length;
        if self.unsent_bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Called before another request is answered: flushes if replies have waited too long.
    pub(super) async fn flush_late(&mut self) -> Result<(), Failure> {
        if self.unsent == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.waiting_since.get_or_insert(now);
        if now - since > LONGEST_WAIT {
            self.flush().await?;
        }
        Ok(())
    }

    /// Ready once none waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.unsent > 0 {
            ready!(self.sender.poll_flush(cx)).map_err(Failure::Send)?;
            let (replies, bytes) = (
                mem::take(&mut self.unsent),
                mem::take(&mut self.unsent_bytes),
            );
            self.sent += replies;
            self.stats.count_replies(replies, bytes as u64);
            self.waiting_since = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes all of them.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        self.flush_and(|_| Ok(())).await
    }

    /// Flushes all of them, and calls `meanwhile` whenever they can't be sent yet.
    pub(super) async fn flush_and(
        &mut self,
        mut meanwhile: impl FnMut(&mut Context<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let write_timeout = self.write_timeout;
        let mut flushed = poll_fn(|cx| {
            let flushed = self.poll_flush(cx);
            if flushed.is_pending() {
                meanwhile(cx)?;
            }
            flushed
        });
        match within(write_timeout, &mut flushed).await {
            Ok(flushed) => flushed,
            Err(time) => Err(Failure::WriteTimeout(time)),
        }
    }
}
