//! The write timeout, with another side that reads slowly.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use super::Connection;
use crate::{
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    peer::Peer,
};

/// The time after which the other side reads one more message.
const PAUSE: Duration = Duration::from_secs(6);

/// Sends nothing, and reads a number of messages, with a pause before each.
struct SlowReader {
    unread: usize,
    reads: usize,
    pause: Pin<Box<Sleep>>,
}

struct NoLink;

impl Link for NoLink {
    fn peer(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_hung_up(&self) -> bool {
        false
    }
}

impl Receive for NoLink {
    fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        Poll::Pending
    }

    fn turn(&self) -> u32 {
        1
    }

    fn close(&mut self) {}
}

impl Transmit for SlowReader {
    fn start_send(&mut self, _: Bytes) -> Result<(), SendError> {
        self.unread += 1;
        Ok(())
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        while self.unread > 0 {
            if self.reads == 0 {
                return Poll::Pending;
            }
            ready!(self.pause.as_mut().poll(cx));
            self.pause = Box::pin(sleep(PAUSE));
            self.unread -= 1;
            self.reads -= 1;
        }
        Poll::Ready(Ok(()))
    }

    fn pending(&self) -> usize {
        self.unread
    }
}

/// Sends five messages at once, of which the other side reads `reads`.
async fn send_five(reads: usize) -> Result<(), SendError> {
    let channel = Channel {
        receiver: Box::new(NoLink),
        sender: Box::new(SlowReader {
            unread: 0,
            reads,
            pause: Box::pin(sleep(PAUSE)),
        }),
        link: Arc::new(NoLink),
    };
    let (_receiver, mut sender) = Connection::new(channel, None, 1, 10).into_split();
    sender.set_write_timeout(Some(Duration::from_secs(10)));
    for _ in 0..5 {
        sender.start("message".into())?;
    }
    poll_fn(|cx| sender.poll_flush(cx)).await
}

#[tokio::test(start_paused = true)]
async fn a_side_that_reads_one_message_after_the_other_is_in_time() {
    send_five(5).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_side_that_stops_reading_is_not() {
    let sent = send_five(4).await;
    assert!(matches!(sent, Err(SendError::TimedOut { .. })), "{sent:?}");
}
