//! What the features `futures` and `tower` add, on every engine.

use std::{
    cell::Cell,
    future::{self, Future, IntoFuture, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_util::{Sink, SinkExt, Stream, StreamExt, TryStreamExt, stream};
use pipe_server::{
    Bytes, ClientOptions, Connection, Handler, ListenerOptions, RecvError, RecvHalf, Request,
    SendError, SendHalf, TowerHandler, serve,
};
use tokio::{sync::mpsc, task::yield_now};
use tower::{Service, ServiceExt, service_fn};

use support::{Kind, Pipe, message, on_every_engine};

on_every_engine! {
    messages_go_round_through_streams_and_sinks,
    closing_a_sink_ends_the_conversation_and_the_replies_come,
    a_stream_that_has_ended_gives_none_for_ever,
    what_was_fed_arrives_in_order_once_it_is_flushed,
    a_flush_waits_until_a_full_pipe_is_read,
    a_sink_refuses_an_oversized_or_empty_item_and_sends_the_next,
    a_message_over_the_limit_is_the_last_item_of_its_stream,
    a_client_is_a_stream_and_a_sink,
    a_service_keeps_its_state_between_requests,
    a_stack_of_services_is_a_handler,
    a_service_is_cloned_once_a_connection_and_need_not_be_sync,
    a_service_is_not_called_before_it_is_ready,
    requests_that_wait_until_a_service_is_ready_do_not_forget_each_other,
    an_error_of_a_service_costs_its_client_the_connection,
}

/// A server's end of a connection, and the halves of its client's.
async fn pair(kind: Kind, options: ListenerOptions) -> (Connection, RecvHalf, SendHalf) {
    let (mut listener, pipe) = kind.bind(options);
    let (receiver, sender) = pipe.connect().await.into_split();
    (listener.accept().await.unwrap(), receiver, sender)
}

/// Neighbours of very different lengths, more than a pipe holds.
fn messages(kind: Kind) -> Vec<Bytes> {
    let lengths = [1, 4095, 2, 4094, 8192, 65_536, 3, 4097, 100];
    let lengths = lengths.into_iter().cycle().take(90);
    let messages = lengths.enumerate().map(|(number, length)| {
        let length = length.min(kind.longest());
        Bytes::from(message(number, length))
    });
    messages.collect()
}

async fn messages_go_round_through_streams_and_sinks(kind: Kind) {
    let (connection, receiver, sender) = pair(kind, ListenerOptions::new()).await;
    let echoing = tokio::spawn(async move {
        let (sink, stream) = connection.split();
        let replies = stream.map_err(io::Error::from);
        replies.forward(sink.sink_map_err(io::Error::from)).await
    });
    let sent = messages(kind);
    let requests = stream::iter(sent.clone()).map(Ok);
    let sending = tokio::spawn(requests.forward(sender));
    let received: Vec<Bytes> = receiver.try_collect().await.unwrap();
    assert!(received == sent);
    sending.await.unwrap().unwrap();
    echoing.await.unwrap().unwrap();
}

async fn closing_a_sink_ends_the_conversation_and_the_replies_come(kind: Kind) {
    let (connection, receiver, sender) = pair(kind, ListenerOptions::new()).await;
    let (sink, stream) = connection.split();
    // Once from the client's half and once from the server's whole connection.
    say_and_close(sender, stream).await;
    say_and_close(sink, receiver).await;
}

async fn say_and_close(
    mut sink: impl Sink<Bytes, Error = SendError> + Unpin,
    mut stream: impl Stream<Item = Result<Bytes, RecvError>> + Unpin,
) {
    sink.send("the last word".into()).await.unwrap();
    sink.close().await.unwrap();
    let late = sink.send("too late".into()).await;
    assert!(matches!(late, Err(SendError::Finished)), "{late:?}");
    sink.close().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "the last word");
    assert!(stream.next().await.is_none());
}

async fn a_stream_that_has_ended_gives_none_for_ever(kind: Kind) {
    let (connection, receiver, sender) = pair(kind, ListenerOptions::new()).await;
    drop((receiver, sender));
    gives_none_for_ever(connection).await;

    let (connection, receiver, _sender) = pair(kind, ListenerOptions::new()).await;
    drop(connection);
    gives_none_for_ever(receiver).await;

    let (connection, _receiver, mut sender) = pair(kind, ListenerOptions::new()).await;
    sender.close().await.unwrap();
    gives_none_for_ever(connection.into_split().0).await;
}

async fn gives_none_for_ever(mut stream: impl Stream<Item = Result<Bytes, RecvError>> + Unpin) {
    for _ in 0..3 {
        assert!(stream.next().await.is_none());
    }
}

async fn what_was_fed_arrives_in_order_once_it_is_flushed(kind: Kind) {
    let (connection, receiver, sender) = pair(kind, ListenerOptions::new()).await;
    let (sink, stream) = connection.split();
    feed_and_flush(sender, stream, messages(kind)).await;
    feed_and_flush(sink, receiver, messages(kind)).await;
}

async fn feed_and_flush(
    mut sink: impl Sink<Bytes, Error = SendError> + Unpin,
    stream: impl Stream<Item = Result<Bytes, RecvError>> + Unpin,
    messages: Vec<Bytes>,
) {
    let feeding = async {
        for message in &messages {
            sink.feed(message.clone()).await.unwrap();
        }
        sink.flush().await.unwrap();
    };
    let receiving = stream.take(messages.len()).try_collect::<Vec<_>>();
    let ((), received) = tokio::join!(feeding, receiving);
    assert!(received.unwrap() == messages);
}

async fn a_flush_waits_until_a_full_pipe_is_read(kind: Kind) {
    let options = ListenerOptions::new().buffer_size(4096);
    let (connection, mut receiver, _sender) = pair(kind, options).await;
    let (_stream, mut sink) = connection.into_split();
    let message = Bytes::from(message(1, kind.longest().min(65_536)));
    let mut fed = 0;
    loop {
        // A sender that always has room still lets others run, so once is not enough.
        let mut tries = 0..100;
        let mut sending = pin!(async {
            sink.feed(message.clone()).await.unwrap();
            sink.flush().await.unwrap();
        });
        let sent = poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if tries.next().is_some() => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(false),
        });
        fed += 1;
        if !sent.await {
            break;
        }
    }
    let receiving = async {
        for _ in 0..fed {
            assert!(receiver.next().await.unwrap().unwrap() == message);
        }
    };
    let (flushed, ()) = tokio::join!(sink.flush(), receiving);
    flushed.unwrap();
}

async fn a_sink_refuses_an_oversized_or_empty_item_and_sends_the_next(kind: Kind) {
    let options = ListenerOptions::new().max_message_size(10);
    let (connection, receiver, _sender) = pair(kind, options).await;
    refuse_and_send(connection, receiver, 10).await;

    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let options = ClientOptions::new().max_message_size(10);
    let (_receiver, sender) = pipe.connect_with(options).await.into_split();
    refuse_and_send(sender, listener.accept().await.unwrap(), 10).await;
}

async fn refuse_and_send(
    mut sink: impl Sink<Bytes, Error = SendError> + Unpin,
    mut stream: impl Stream<Item = Result<Bytes, RecvError>> + Unpin,
    limit: usize,
) {
    let long = Bytes::from(vec![0; limit + 1]);
    for refused in [sink.send(long.clone()).await, sink.feed(long).await] {
        let as_it_should = matches!(
            refused,
            Err(SendError::TooLong { length, limit: most, .. }) if length == limit + 1 && most == limit
        );
        assert!(as_it_should, "{refused:?}");
    }
    let refused = sink.send(Bytes::new()).await;
    assert!(matches!(refused, Err(SendError::Empty)), "{refused:?}");
    sink.send("next".into()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "next");
}

async fn a_message_over_the_limit_is_the_last_item_of_its_stream(kind: Kind) {
    let options = ListenerOptions::new().max_message_size(10);
    let (mut connection, _receiver, mut sender) = pair(kind, options).await;
    sender.send(vec![0; 11]).await.unwrap();
    let item = connection.next().await.unwrap();
    let as_it_should = matches!(item, Err(RecvError::TooLong { limit: 10, .. }));
    assert!(as_it_should, "{item:?}");
    assert!(connection.next().await.is_none());
}

async fn a_client_is_a_stream_and_a_sink(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let client = pipe.connect().await;
    let mut connection = listener.accept().await.unwrap();
    let (mut sink, mut stream) = client.split();
    sink.feed("one".into()).await.unwrap();
    sink.send("two".into()).await.unwrap();
    sink.close().await.unwrap();
    for text in ["one", "two"] {
        assert_eq!(connection.recv().await.unwrap().unwrap(), text);
    }
    assert!(connection.recv().await.unwrap().is_none());
    connection.send("reply").await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "reply");
}

/// Serves with a service, until the runtime of the test ends.
fn start<T: 'static>(kind: Kind, handler: impl Handler<T>) -> Pipe {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    tokio::spawn(serve(listener, handler).into_future());
    pipe
}

/// Counts requests, its own and those of its clones.
#[derive(Clone, Debug, Default)]
struct Counter {
    /// Set by `poll_ready`, and used up by `call`.
    ready: bool,
    requests: Arc<AtomicUsize>,
}

impl Service<Request> for Counter {
    type Response = String;
    type Error = io::Error;
    type Future = future::Ready<io::Result<String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called before it was ready"
        );
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let text = String::from_utf8_lossy(request.bytes()).into_owned();
        future::ready(Ok(format!("{number}: {text}")))
    }
}

async fn a_service_keeps_its_state_between_requests(kind: Kind) {
    let counter = Counter::default();
    let pipe = start(kind, TowerHandler::new(counter.clone()));
    let mut one = pipe.connect().await;
    let mut other = pipe.connect().await;
    assert_eq!(one.call("a").await.unwrap(), "1: a");
    assert_eq!(other.call("b").await.unwrap(), "2: b");
    for text in ["c", "d"] {
        one.send(text).await.unwrap();
    }
    assert_eq!(one.recv().await.unwrap().unwrap(), "3: c");
    assert_eq!(one.recv().await.unwrap().unwrap(), "4: d");
    assert_eq!(counter.requests.load(Ordering::Relaxed), 4);
}

/// Counts its own requests and not those of its clones. `Cell` makes it `!Sync`.
#[derive(Default)]
struct Unshared {
    requests: Cell<u32>,
    clones: Arc<AtomicUsize>,
}

impl Clone for Unshared {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, Ordering::Relaxed);
        Self {
            requests: Cell::new(0),
            clones: Arc::clone(&self.clones),
        }
    }
}

impl Service<Request> for Unshared {
    type Response = String;
    type Error = io::Error;
    type Future = future::Ready<io::Result<String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        self.requests.set(self.requests.get() + 1);
        future::ready(Ok(self.requests.get().to_string()))
    }
}

async fn a_service_is_cloned_once_a_connection_and_need_not_be_sync(kind: Kind) {
    let clones = Arc::default();
    let service = Unshared {
        requests: Cell::default(),
        clones: Arc::clone(&clones),
    };
    let pipe = start(kind, TowerHandler::new(service));
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for number in ["1", "2", "3"] {
        assert_eq!(one.call("x").await.unwrap(), number);
    }
    assert_eq!(other.call("x").await.unwrap(), "1");
    assert_eq!(clones.load(Ordering::Relaxed), 2);
}

async fn a_stack_of_services_is_a_handler(kind: Kind) {
    let inner = service_fn(|text: String| async move {
        yield_now().await;
        Ok::<_, io::Error>(text.to_uppercase())
    });
    let stack = inner
        .map_request(|request: Request| String::from_utf8_lossy(request.bytes()).into_owned())
        .map_response(|text| format!("{text}!"));
    let pipe = start(kind, TowerHandler::new(stack));
    let mut client = pipe.connect().await;
    assert_eq!(client.call("hello").await.unwrap(), "HELLO!");
    assert_eq!(client.call("again").await.unwrap(), "AGAIN!");
}

/// Is ready once its gate is open, and says when it was asked.
#[derive(Clone)]
struct Gated {
    asked: mpsc::UnboundedSender<()>,
    gate: Arc<Mutex<Gate>>,
    inner: Counter,
}

#[derive(Default)]
struct Gate {
    open: bool,
    waiting: Vec<Waker>,
}

impl Service<Request> for Gated {
    type Response = String;
    type Error = io::Error;
    type Future = future::Ready<io::Result<String>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        _ = self.asked.send(());
        let mut gate = self.gate.lock().unwrap();
        if !gate.open {
            gate.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.inner.call(request)
    }
}

async fn a_service_is_not_called_before_it_is_ready(kind: Kind) {
    let (asked, mut was_asked) = mpsc::unbounded_channel();
    let gated = Gated {
        asked,
        gate: Arc::default(),
        inner: Counter::default(),
    };
    let gate = Arc::clone(&gated.gate);
    let requests = Arc::clone(&gated.inner.requests);
    let pipe = start(kind, TowerHandler::new(gated));
    let mut client = pipe.connect().await;
    client.send("hello").await.unwrap();
    was_asked.recv().await.unwrap();
    assert_eq!(requests.load(Ordering::Relaxed), 0);

    let waiting = {
        let mut gate = gate.lock().unwrap();
        gate.open = true;
        std::mem::take(&mut gate.waiting)
    };
    for waker in waiting {
        waker.wake();
    }
    assert_eq!(client.recv().await.unwrap().unwrap(), "1: hello");
}

/// Has room for one call at a time and remembers one task that waits for it, as `poll_ready` may.
#[derive(Clone, Default)]
struct Narrow {
    room: Arc<Mutex<Room>>,
}

#[derive(Default)]
struct Room {
    is_taken: bool,
    waiting: Option<Waker>,
}

impl Service<Request> for Narrow {
    type Response = Bytes;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut room = self.room.lock().unwrap();
        if room.is_taken {
            room.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        assert!(!std::mem::replace(
            &mut self.room.lock().unwrap().is_taken,
            true
        ));
        let room = Arc::clone(&self.room);
        Box::pin(async move {
            yield_now().await;
            let waiting = {
                let mut room = room.lock().unwrap();
                room.is_taken = false;
                room.waiting.take()
            };
            if let Some(waker) = waiting {
                waker.wake();
            }
            Ok(request.into_bytes())
        })
    }
}

async fn requests_that_wait_until_a_service_is_ready_do_not_forget_each_other(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let handler = TowerHandler::new(Narrow::default());
    tokio::spawn(serve(listener, handler).concurrency(4).into_future());
    let mut client = pipe.connect().await;
    for number in 0..20 {
        client.send(format!("request {number}")).await.unwrap();
    }
    for number in 0..20 {
        let reply = client.recv().await.unwrap().unwrap();
        assert_eq!(reply, format!("request {number}"));
    }
}

/// Fails when it is asked for it, in `call` or else when it is to get ready for the request after
/// that.
#[derive(Clone, Default)]
struct Failing {
    unready: Arc<Mutex<bool>>,
}

impl Service<Request> for Failing {
    type Response = Bytes;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut *self.unready.lock().unwrap()) {
            return Poll::Ready(Err(io::Error::other("not ready, as asked")));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let unready = Arc::clone(&self.unready);
        Box::pin(async move {
            match &request.bytes()[..] {
                b"fail" => return Err(io::Error::other("failed, as asked")),
                b"fail next" => *unready.lock().unwrap() = true,
                _ => {}
            }
            Ok(request.into_bytes())
        })
    }
}

async fn an_error_of_a_service_costs_its_client_the_connection(kind: Kind) {
    let pipe = start(kind, TowerHandler::new(Failing::default()));
    let mut other = pipe.connect().await;

    let mut client = pipe.connect().await;
    client.send("fail").await.unwrap();
    assert!(client.recv().await.unwrap().is_none());

    let mut client = pipe.connect().await;
    assert_eq!(client.call("fail next").await.unwrap(), "fail next");
    client.send("next").await.unwrap();
    assert!(client.recv().await.unwrap().is_none());

    assert_eq!(other.call("still there").await.unwrap(), "still there");
}
