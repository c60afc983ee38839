//! One connection of a shared client.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::{Sleep, sleep};

use super::pool::{Pool, Request};
use crate::{
    client::{Client, no_reply},
    connection::{RecvEnd, RecvHalf, SendHalf},
    error::{CallError, RecvError, SendError, SharedCallErrorKind},
};

pub(super) struct PooledConnection {
    pool: Arc<Pool>,
    receiver: RecvHalf,
    sender: SendHalf,
    /// The requests that the engine has taken and the server has not answered, in order. Those
    /// that were given up stay here: their replies still arrive.
    pub(super) in_flight: VecDeque<Request>,
    /// The error after which no more requests can be sent.
    send_error: Option<Arc<CallError>>,
    pub(super) has_replied: bool,
    /// The number of requests that may be in flight, if a late reply has limited it.
    window: Option<usize>,
    /// Runs while the first request in flight is given up.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl PooledConnection {
    pub(super) fn new(pool: &Arc<Pool>, client: Client) -> Self {
        let (receiver, sender) = client.into_split();
        Self {
            pool: Arc::clone(pool),
            receiver,
            sender,
            in_flight: VecDeque::new(),
            send_error: None,
            has_replied: false,
            window: None,
            stalled: None,
        }
    }

    /// Returns whether a request would be the only one in flight. A late reply to a call that was
    /// given up counts as in flight.
    pub(super) fn is_free(&self) -> bool {
        self.in_flight.is_empty() && self.send_error.is_none()
    }

    /// Receives replies. Ready once the connection has failed.
    pub(super) fn poll_replies(&mut self, cx: &mut Context<'_>) -> Poll<SharedCallErrorKind> {
        loop {
            let error = match ready!(self.receiver.poll_recv(cx)) {
                Ok(Some(reply)) => {
                    let Some(request) = self.in_flight.pop_front() else {
                        return Poll::Ready(SharedCallErrorKind::OutOfStep);
                    };
                    self.has_replied = true;
                    self.stalled = None;
                    self.adapt_window(&request);
                    request.answer(Ok(reply));
                    continue;
                }
                Ok(None) => {
                    if self.receiver.end() == Some(RecvEnd::Closed) {
                        ready!(self.poll_unsent(cx));
                    }
                    no_reply(&self.receiver)
                }
                Err(error) => error.into(),
            };
            if let (CallError::Recv(RecvError::TooLong { .. }), Some(first)) =
                (&error, self.in_flight.front_mut())
            {
                // Its reply would be too long again.
                first.repeat = false;
            }
            return Poll::Ready(SharedCallErrorKind::Connection(Arc::new(error)));
        }
    }

    /// Ready once it is known which requests the server, which has closed, can't have executed: what
    /// the system had not accepted now fails to be sent.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.send_error.is_none() {
            if let Err(error) = ready!(self.sender.poll_flush(cx)) {
                self.send_failed(error);
            }
        }
        Poll::Ready(())
    }

    /// Limits the requests in flight to one after a reply that came too late, and to one more after
    /// each further reply. A server that is slower than its callers would otherwise execute nothing
    /// but requests whose calls have timed out.
    fn adapt_window(&mut self, answered: &Request) {
        self.window = match self.window {
            _ if answered.has_timed_out() => Some(1),
            Some(window) if window < self.pool.max_in_flight => Some(window + 1),
            _ => None,
        };
    }

    /// Returns whether the next request should be the newest one. The oldest ones wait for so long
    /// that they would time out as well.
    pub(super) fn is_slow(&self) -> bool {
        self.window.is_some()
    }

    /// Returns whether the server works on a request whose call was given up. Other connections are
    /// preferred.
    pub(super) fn waits_for_late_reply(&self) -> bool {
        let first = self.in_flight.front();
        first.is_some_and(|request| request.answer.is_closed())
    }

    /// Returns whether there is room for another request.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> bool {
        let is_full = self
            .window
            .is_some_and(|window| self.in_flight.len() >= window);
        let has_ended = self.send_error.is_some() || self.receiver.end().is_some();
        if is_full || has_ended {
            return false;
        }
        match self.sender.poll_room(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.send_failed(error);
                false
            }
            Poll::Pending => false,
        }
    }

    /// Starts sending a request, once there is room.
    pub(super) fn send(&mut self, request: Request) {
        let message = request.message.clone();
        self.in_flight.push_back(request);
        if let Err(error) = self.sender.start(message) {
            self.send_failed(error);
        }
    }

    /// Sends what was started. Ready once the connection has failed.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<SharedCallErrorKind> {
        if self.send_error.is_none() {
            match self.sender.poll_flush(cx) {
                Poll::Ready(Err(error)) => self.send_failed(error),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        match &self.send_error {
            // The replies to earlier requests still arrive.
            Some(error) if self.in_flight.is_empty() => {
                Poll::Ready(SharedCallErrorKind::Connection(Arc::clone(error)))
            }
            _ => self.poll_stalled(cx),
        }
    }

    /// The request that failed and all after it were not sent.
    fn send_failed(&mut self, error: SendError) {
        let unsent = (1 + self.sender.pending()).min(self.in_flight.len());
        let error = Arc::new(CallError::from(error));
        self.send_error = Some(Arc::clone(&error));
        for mut request in self.in_flight.split_off(self.in_flight.len() - unsent) {
            // Without any reply, the break counts for all that wait: see `Driver::close`.
            if !self.has_replied || request.survives_break() {
                self.pool.put_back(request);
            } else {
                request.fail(SharedCallErrorKind::Connection(Arc::clone(&error)));
            }
        }
        self.pool.changed.notify_one();
    }

    /// Ready once the server has not answered for so long that all calls would time out.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<SharedCallErrorKind> {
        let call_timeout = self.pool.options.call_timeout;
        let (Some(after), Some(first)) = (call_timeout, self.in_flight.front_mut()) else {
            return Poll::Pending;
        };
        if self.stalled.is_none() {
            ready!(first.answer.poll_closed(cx));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(after)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(SharedCallErrorKind::Stalled { after })
    }

    /// Closes the connection. Its requests fail, or wait for another one if they may be sent again.
    pub(super) fn close(self, failure: &SharedCallErrorKind) {
        let is_aborted = matches!(failure, SharedCallErrorKind::Aborted);
        let end = self.receiver.end();
        // First, so that the instance is free for the next connection.
        drop((self.receiver, self.sender));
        // The server has answered all requests that it took, and says so.
        let is_finished = end == Some(RecvEnd::HalfClosed);
        for mut request in self.in_flight {
            request.may_be_executed |= !is_finished;
            if !is_aborted && request.survives_break() {
                self.pool.put_back(request);
            } else {
                request.fail(failure.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, pin::pin, task::Waker};

    use bytes::Bytes;
    use tokio::sync::{
        Notify, Semaphore,
        oneshot::{self, error::TryRecvError},
    };

    use super::*;
    use crate::{
        client::ClientOptions,
        client::shared::pool::{Address, Answer},
        engine::{Channel, Link, Receive, Received, Transmit},
        peer::Peer,
        sync::Mutex,
    };

    /// A server that takes two requests and closes. Its replies arrive a moment later.
    #[derive(Default)]
    struct Closing {
        sent: Mutex<usize>,
        replies: Mutex<VecDeque<Bytes>>,
    }

    /// A server that takes nothing and closes. Those who receive learn that first.
    #[derive(Default)]
    struct Full {
        unsent: Mutex<usize>,
        has_ended: Mutex<bool>,
    }

    impl Receive for Arc<Full> {
        fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
            *self.has_ended.lock() = true;
            Poll::Ready(Ok(Received::Closed))
        }

        fn turn(&self) -> u32 {
            1
        }

        fn close(&mut self) {}
    }

    impl Transmit for Arc<Full> {
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
            Poll::Ready(Ok(()))
        }

        fn start_send(&mut self, _: Bytes) -> Result<(), SendError> {
            *self.unsent.lock() += 1;
            Ok(())
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
            let mut unsent = self.unsent.lock();
            match (*unsent, *self.has_ended.lock()) {
                (0, _) => Poll::Ready(Ok(())),
                (_, false) => Poll::Pending,
                (_, true) => {
                    *unsent -= 1;
                    Poll::Ready(Err(SendError::Closed))
                }
            }
        }

        fn pending(&self) -> usize {
            *self.unsent.lock()
        }
    }

    /// The link of a server that has closed.
    struct ClosedLink;

    impl Link for ClosedLink {
        fn peer(&self) -> io::Result<Peer> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn is_hung_up(&self) -> bool {
            true
        }
    }

    impl Receive for Arc<Closing> {
        fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
            let mut replies = self.replies.lock();
            match replies.pop_front() {
                Some(reply) if reply.is_empty() => Poll::Ready(Ok(Received::Closed)),
                Some(reply) => Poll::Ready(Ok(Received::Message(reply))),
                None => Poll::Pending,
            }
        }

        fn turn(&self) -> u32 {
            1
        }

        fn close(&mut self) {}
    }

    impl Transmit for Arc<Closing> {
        fn start_send(&mut self, _: Bytes) -> Result<(), SendError> {
            *self.sent.lock() += 1;
            Ok(())
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
            match *self.sent.lock() {
                0..=2 => Poll::Ready(Ok(())),
                _ => Poll::Ready(Err(SendError::Closed)),
            }
        }

        fn pending(&self) -> usize {
            0
        }
    }

    fn client<S>(server: &Arc<S>) -> Client
    where
        Arc<S>: Receive + Transmit + 'static,
    {
        let channel = Channel {
            receiver: Box::new(Arc::clone(server)),
            sender: Box::new(Arc::clone(server)),
            link: Arc::new(ClosedLink),
        };
        Client::new(channel, 10, None)
    }

    fn pool() -> Arc<Pool> {
        Arc::new(Pool {
            address: Address::Name("unused".try_into().unwrap()),
            options: ClientOptions::new(),
            max_message_size: 10,
            most_connections: 1,
            max_in_flight: 10,
            slots: Arc::new(Semaphore::new(10)),
            queue: Mutex::default(),
            changed: Notify::new(),
            ended: Notify::new(),
        })
    }

    fn submit(pool: &Pool) -> (Request, oneshot::Receiver<Answer>) {
        let slot = Arc::clone(&pool.slots).try_acquire_owned().unwrap();
        let (_, answer) = pool.submit("request".into(), false, slot, None);
        let (_, request) = pool.queue.lock().waiting.pop_first().unwrap();
        (request, answer)
    }

    #[test]
    fn replies_arrive_after_sending_has_failed() {
        let server = Arc::new(Closing::default());
        let pool = pool();
        let mut connection = PooledConnection::new(&pool, client(&server));
        let cx = &mut Context::from_waker(Waker::noop());

        let mut answers = Vec::new();
        for _ in 0..3 {
            assert!(connection.poll_room(cx));
            let (request, answer) = submit(&pool);
            answers.push(answer);
            connection.send(request);
            assert!(connection.poll_flush(cx).is_pending());
        }
        // The third one can be sent on another connection at once.
        assert_eq!(pool.queue.lock().waiting.len(), 1);
        assert!(!connection.poll_room(cx));

        let replies = ["one", "two", ""].map(Bytes::from);
        server.replies.lock().extend(replies);
        assert!(connection.poll_replies(cx).is_ready());
        let answers = answers.iter_mut().map(|answer| answer.try_recv());
        let answers: Vec<_> = answers
            .map(|answer| answer.ok().map(Result::unwrap))
            .collect();
        assert_eq!(answers, [Some("one".into()), Some("two".into()), None]);
    }

    #[test]
    fn requests_that_waited_for_room_when_the_server_closed_are_sent_again() {
        let pool = pool();
        let mut connection = PooledConnection::new(&pool, client(&Arc::new(Full::default())));
        let cx = &mut Context::from_waker(Waker::noop());
        let mut answers = Vec::new();
        for _ in 0..3 {
            assert!(connection.poll_room(cx));
            let (request, answer) = submit(&pool);
            answers.push(answer);
            connection.send(request);
            assert!(connection.poll_flush(cx).is_pending());
        }
        let Poll::Ready(failure) = connection.poll_replies(cx) else {
            panic!("the server has closed");
        };
        connection.close(&failure);
        assert_eq!(pool.queue.lock().waiting.len(), 3);
        for answer in &mut answers {
            assert_eq!(answer.try_recv().err(), Some(TryRecvError::Empty));
        }
    }

    /// On a connection of its own, too.
    #[test]
    fn a_request_that_waited_for_room_when_the_server_closed_was_not_sent() {
        let mut client = client(&Arc::new(Full::default()));
        let cx = &mut Context::from_waker(Waker::noop());
        let mut call = pin!(client.call("request"));
        assert!(call.as_mut().poll(cx).is_pending());
        let Poll::Ready(Err(error)) = call.as_mut().poll(cx) else {
            panic!("the server has closed");
        };
        assert!(matches!(error, CallError::Send(_)), "{error:?}");
    }
}
