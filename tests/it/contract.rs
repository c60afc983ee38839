//! The contract (see the crate's documentation), checked on every engine of this system and on the
//! memory engine.

use std::{
    future::{Future, IntoFuture, pending, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use pipe_server::{
    Bytes, CallError, Client, ClientOptions, ConnectError, Connection, ListenerOptions,
    PipeListener, RecvError, Reply, Request, SendError, Summary, serve,
};
use tokio::{sync::oneshot, task::JoinHandle};

use support::{Kind, Pipe, message, on_every_engine, tuned};

on_every_engine! {
    serving:
    messages_of_every_size_come_whole,
    pipelined_neighbours_stay_apart,
    a_message_over_the_limit_ends_its_connection_and_nothing_else,
    sending_an_oversized_or_empty_message_sends_nothing,
    an_empty_message_ends_the_conversation_and_the_replies_come,
    requests_of_one_client_are_answered_in_order_one_at_a_time,
    a_reply_does_not_wait_for_a_later_request,
    a_client_that_waited_for_replies_may_send_two_requests_before_it_reads,
    what_was_answered_before_a_failure_is_sent,
    sixty_four_clients_are_served_at_once,
    a_client_that_left_at_once_costs_nothing_and_its_message_is_read,
    a_client_gone_before_its_reply_hurts_nobody,
    with_one_instance_clients_take_turns,
    at_the_limit_a_client_waits_and_is_not_lost,
    a_panic_or_an_error_costs_its_own_client_the_connection,
    a_reply_can_be_read_after_the_connection_was_dropped,
    a_dropped_recv_loses_nothing,
    a_dropped_send_sends_all_of_its_message_or_nothing,
    a_connection_dropped_in_the_middle_of_a_send_is_closed,
    a_dropped_accept_loses_nothing,
    the_reply_to_a_dropped_call_is_not_taken_for_another,
    a_call_may_be_dropped_at_any_point,
    a_call_that_times_out_leaves_a_client_that_can_call_again,
    an_idle_shutdown_ends_at_once,
    a_shutdown_lets_a_request_in_progress_finish,
    a_shutdown_answers_every_request_that_was_sent_before,
    a_shutdown_serves_a_client_that_was_not_accepted_yet,
    a_shutdown_ends_what_is_stuck,
    messages_sent_before_receiving_is_closed_arrive_and_no_others,
    messages_sent_before_receiving_is_closed_arrive_however_late_they_are_received,
    a_client_that_never_stops_sending_does_not_keep_receiving_from_ending,
    a_message_whose_read_has_begun_when_receiving_is_closed_arrives_whole,
    what_a_shutdown_executes_is_answered_though_its_client_never_stops_sending,
    replies_are_received_after_a_send_has_failed,
    after_a_shutdown_nobody_serves_the_name,
    clients_that_come_and_go_while_the_server_drains_get_whole_replies_or_none,
    a_slow_handler_is_cut_off,
    a_silent_client_is_cut_off,
    a_client_that_does_not_read_is_cut_off,
    few_replies_wait_for_a_client_that_does_not_read,
    a_handler_is_cancelled_when_its_client_leaves_if_asked,
    requests_that_nobody_has_begun_do_not_hide_that_their_client_has_left,
    the_peer_of_a_request_is_this_process,
    both_halves_work_at_once,
    an_empty_message_and_a_close_are_told_apart,
}

struct Server {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Summary>,
}

impl Server {
    async fn stop(mut self) -> Summary {
        _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap()
    }
}

/// Serves with the given changes to the server's options.
macro_rules! start {
    ($listener:expr, $handler:expr $(, $option:ident($value:expr))*) => {{
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tuned(serve($listener, $handler))
            $(.$option($value))*
            .with_graceful_shutdown(async { _ = stopped.await; });
        Server { stop: Some(stop), task: tokio::spawn(serving.into_future()) }
    }};
}

async fn echo(request: Bytes) -> io::Result<Bytes> {
    Ok(request)
}

fn echo_server(kind: Kind, options: ListenerOptions) -> (Server, Pipe) {
    let (listener, pipe) = kind.bind(options);
    (start!(listener, echo), pipe)
}

/// Where engines change their ways: a page, the pipe's buffer, and beyond.
fn sizes(kind: Kind) -> Vec<usize> {
    let edges = [
        512,
        1024,
        4096,
        8192,
        12_288,
        16_384,
        65_536,
        131_072,
        1 << 20,
    ];
    let around = edges
        .into_iter()
        .flat_map(|edge| [edge - 1, edge, edge + 1]);
    [1, 2, 4094, 200_000, 16 << 20]
        .into_iter()
        .chain(around)
        .filter(|&size| size <= kind.longest())
        .collect()
}

/// A length that is long for the engine and still allowed by the default options.
fn default_size(kind: Kind) -> usize {
    kind.longest().min(65_536)
}

fn roomy(kind: Kind) -> (ListenerOptions, ClientOptions) {
    let longest = kind.longest();
    (
        ListenerOptions::new().max_message_size(longest),
        ClientOptions::new().max_message_size(longest),
    )
}

async fn messages_of_every_size_come_whole(kind: Kind) {
    let (listening, connecting) = roomy(kind);
    let (server, pipe) = echo_server(kind, listening);
    let mut client = pipe.connect_with(connecting).await;
    for (number, size) in sizes(kind).into_iter().enumerate() {
        let sent = message(number, size);
        assert!(
            client.call(sent.clone()).await.unwrap() == sent,
            "{size} bytes"
        );
    }
    drop(client);
    let summary = server.stop().await;
    assert_eq!(summary.stats.requests, sizes(kind).len() as u64);
    assert_eq!(summary.stats.replies, summary.stats.requests);
}

async fn pipelined_neighbours_stay_apart(kind: Kind) {
    let (listening, connecting) = roomy(kind);
    let (_server, pipe) = echo_server(kind, listening);
    let (mut receiver, mut sender) = pipe.connect_with(connecting).await.into_split();
    let mut lengths = Vec::new();
    for (index, size) in sizes(kind).into_iter().enumerate() {
        lengths.extend([size, index + 1, (size / 2).max(1), size]);
    }
    let expected = lengths.clone();
    let sending = tokio::spawn(async move {
        for (number, length) in lengths.into_iter().enumerate() {
            sender.send(message(number, length)).await.unwrap();
        }
        sender
    });
    for (number, length) in expected.into_iter().enumerate() {
        let reply = receiver.recv().await.unwrap().unwrap();
        assert!(
            reply == message(number, length),
            "message {number} of {length} bytes"
        );
    }
    sending.await.unwrap();
}

async fn a_message_over_the_limit_ends_its_connection_and_nothing_else(kind: Kind) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_message_size(1000));
    let _server = start!(listener, move |request: Bytes| {
        counted.fetch_add(1, Ordering::Relaxed);
        echo(request)
    });
    let mut other = pipe.connect().await;
    for size in [1001, 4095.min(kind.longest())] {
        let mut client = pipe.connect().await;
        assert_eq!(
            client.call(message(1, 1000)).await.unwrap(),
            message(1, 1000)
        );
        client.send(message(2, size)).await.unwrap();
        assert!(matches!(client.recv().await, Ok(None)), "{size} bytes");
    }
    assert_eq!(other.call("still there").await.unwrap(), "still there");
    assert_eq!(calls.load(Ordering::Relaxed), 3);

    let (mut listener, pipe) = kind.bind(ListenerOptions::new().max_message_size(10));
    let mut client = pipe.connect().await;
    client.send(message(3, 11)).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let error = connection.recv().await.unwrap_err();
    assert!(
        matches!(error, RecvError::TooLong { limit: 10, .. }),
        "{error:?}"
    );
    assert!(connection.recv().await.unwrap().is_none());
}

async fn sending_an_oversized_or_empty_message_sends_nothing(kind: Kind) {
    let (_server, pipe) = echo_server(kind, ListenerOptions::new());
    let mut client = pipe
        .connect_with(ClientOptions::new().max_message_size(10))
        .await;
    let error = client.send(vec![0; 11]).await.unwrap_err();
    assert!(
        matches!(
            error,
            SendError::TooLong {
                length: 11,
                limit: 10,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("limit of 10"), "{error}");
    let error = client.send("").await.unwrap_err();
    assert!(matches!(error, SendError::Empty), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    assert_eq!(client.call("next").await.unwrap(), "next");
}

async fn an_empty_message_ends_the_conversation_and_the_replies_come(kind: Kind) {
    let (server, pipe) = echo_server(kind, ListenerOptions::new());
    let mut client = pipe.connect().await;
    for text in ["one", "two", "three"] {
        client.send(text).await.unwrap();
    }
    client.finish().await.unwrap();
    assert!(matches!(
        client.send("four").await,
        Err(SendError::Finished)
    ));
    for text in ["one", "two", "three"] {
        assert_eq!(client.recv().await.unwrap().unwrap(), text);
    }
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.stop().await.served, 1);
}

async fn requests_of_one_client_are_answered_in_order_one_at_a_time(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let at_work = Arc::new(AtomicUsize::new(0));
    let _server = start!(listener, move |request: Bytes| {
        let at_work = Arc::clone(&at_work);
        async move {
            assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            at_work.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, io::Error>(request)
        }
    });
    let mut client = pipe.connect().await;
    for number in 0..50 {
        client.send(format!("request {number}")).await.unwrap();
    }
    for number in 0..50 {
        assert_eq!(
            client.recv().await.unwrap().unwrap(),
            format!("request {number}")
        );
    }
}

async fn a_reply_does_not_wait_for_a_later_request(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let gate = Arc::new(tokio::sync::Notify::new());
    let gated = Arc::clone(&gate);
    let server = start!(listener, move |request: Bytes| {
        let gate = Arc::clone(&gated);
        async move {
            if request == "slow" {
                gate.notified().await;
            }
            Ok::<_, io::Error>(request)
        }
    });
    let mut client = pipe.connect().await;
    for request in ["one", "two", "slow", "three"] {
        client.send(request).await.unwrap();
    }
    for reply in ["one", "two"] {
        assert_eq!(client.recv().await.unwrap().unwrap(), reply);
    }
    gate.notify_one();
    for reply in ["slow", "three"] {
        assert_eq!(client.recv().await.unwrap().unwrap(), reply);
    }
    assert_eq!(server.stop().await.stats.replies, 4);
}

/// The first reply does not fit into the pipe, so it can't be sent before the client reads.
async fn a_client_that_waited_for_replies_may_send_two_requests_before_it_reads(kind: Kind) {
    let (_server, pipe) = echo_server(kind, ListenerOptions::new().buffer_size(4096));
    let mut client = pipe.connect().await;
    for _ in 0..3 {
        client.call("short").await.unwrap();
    }
    let size = default_size(kind);
    for number in 0..2 {
        client.send(message(number, size)).await.unwrap();
    }
    for number in 0..2 {
        assert!(client.recv().await.unwrap().unwrap() == message(number, size));
    }
}

async fn what_was_answered_before_a_failure_is_sent(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let server = start!(listener, |request: Bytes| async move {
        match &request[..] {
            b"bad" => Err(io::Error::other("as asked")),
            _ => Ok(request),
        }
    });
    let mut client = pipe.connect().await;
    for request in ["one", "two", "bad"] {
        client.send(request).await.unwrap();
    }
    // The server may have closed by now.
    _ = client.send("three").await;
    for reply in ["one", "two"] {
        assert_eq!(client.recv().await.unwrap().unwrap(), reply);
    }
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!((summary.stats.requests, summary.stats.replies), (3, 2));
}

async fn sixty_four_clients_are_served_at_once(kind: Kind) {
    // Miri has no time for as many.
    let count = if cfg!(miri) { 8 } else { 64 };
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let barrier = Arc::new(tokio::sync::Barrier::new(count));
    let server = start!(listener, move |request: Bytes| {
        let barrier = Arc::clone(&barrier);
        async move {
            // Nobody is answered before all have asked.
            barrier.wait().await;
            Ok::<_, io::Error>(request)
        }
    });
    let pipe = Arc::new(pipe);
    let clients: Vec<_> = (0..count)
        .map(|number| {
            let pipe = Arc::clone(&pipe);
            tokio::spawn(async move {
                let text = format!("client {number}");
                assert_eq!(pipe.connect().await.call(text.clone()).await.unwrap(), text);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let summary = server.stop().await;
    assert_eq!(
        (summary.served, summary.aborted, summary.stats.replies),
        (count as u64, 0, count as u64)
    );
}

async fn a_client_that_left_at_once_costs_nothing_and_its_message_is_read(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    drop(pipe.connect().await);
    let mut leaving = pipe.connect().await;
    leaving.send("gone already").await.unwrap();
    drop(leaving);

    let mut messages = Vec::new();
    for _ in 0..2 {
        let mut connection = listener.accept().await.unwrap();
        while let Some(message) = connection.recv().await.unwrap() {
            messages.push(message);
        }
    }
    assert_eq!(messages, ["gone already"]);

    let mut client = pipe.connect().await;
    client.send("here").await.unwrap();
    assert_eq!(
        listener
            .accept()
            .await
            .unwrap()
            .recv()
            .await
            .unwrap()
            .unwrap(),
        "here"
    );
}

async fn a_client_gone_before_its_reply_hurts_nobody(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1));
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let _server = start!(listener, move |request: Bytes| {
        let (asked, gate) = (asked.clone(), Arc::clone(&gate));
        async move {
            _ = asked.send(());
            gate.acquire().await.unwrap().forget();
            Ok::<_, io::Error>(request)
        }
    });
    let mut leaving = pipe.connect().await;
    leaving.send("and away").await.unwrap();
    was_asked.recv().await.unwrap();
    drop(leaving);
    opened.add_permits(2);
    assert_eq!(pipe.connect().await.call("next").await.unwrap(), "next");
}

async fn with_one_instance_clients_take_turns(kind: Kind) {
    let (server, pipe) = echo_server(kind, ListenerOptions::new().max_instances(1));
    let pipe = Arc::new(pipe);
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let pipe = Arc::clone(&pipe);
            tokio::spawn(async move {
                // Not one of them finds the name gone: that would be `NotFound`.
                let mut client = pipe.connect().await;
                let text = format!("client {number}");
                assert_eq!(client.call(text.clone()).await.unwrap(), text);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(server.stop().await.served, 16);
}

async fn at_the_limit_a_client_waits_and_is_not_lost(kind: Kind) {
    let (_server, pipe) = echo_server(kind, ListenerOptions::new().max_instances(2));
    let (mut one, mut two) = (pipe.connect().await, pipe.connect().await);
    assert_eq!(one.call("1").await.unwrap(), "1");
    assert_eq!(two.call("2").await.unwrap(), "2");
    // The shortest queue of Linux holds one client.
    let has_queue = cfg!(target_os = "linux") && kind != Kind::Memory;
    let queued = match has_queue {
        true => Some(pipe.connect().await),
        false => None,
    };
    let refused = pipe
        .try_connect(ClientOptions::new().connect_timeout(Duration::ZERO))
        .await;
    let is_busy = matches!(refused, Err(ConnectError::Busy { .. }));
    assert!(is_busy, "{refused:?}");
    let pipe = Arc::new(pipe);
    let waiting = tokio::spawn({
        let pipe = Arc::clone(&pipe);
        async move { pipe.connect().await.call("4").await.unwrap() }
    });
    drop(one);
    if let Some(mut queued) = queued {
        assert_eq!(queued.call("3").await.unwrap(), "3");
    }
    assert_eq!(waiting.await.unwrap(), "4");
    assert_eq!(two.call("2 again").await.unwrap(), "2 again");
}

async fn a_panic_or_an_error_costs_its_own_client_the_connection(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let server = start!(listener, |request: Bytes| {
        assert!(request != "panic at once", "as asked for");
        async move {
            assert!(request != "panic", "as asked for");
            if request == "fail" {
                return Err(io::Error::other("as asked for"));
            }
            Ok(request)
        }
    });
    let mut other = pipe.connect().await;
    for text in ["panic", "panic at once", "fail"] {
        let mut client = pipe.connect().await;
        let error = client.call(text).await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{text}: {error:?}");
        assert_eq!(other.call("well").await.unwrap(), "well");
    }
    drop(other);
    let summary = server.stop().await;
    assert_eq!(
        (
            summary.served,
            summary.stats.requests,
            summary.stats.replies
        ),
        (4, 6, 3)
    );
}

async fn a_reply_can_be_read_after_the_connection_was_dropped(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1));
    let mut client = pipe.connect().await;
    client.send("one").await.unwrap();
    client.send("two, never read").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "one");
    connection.send("first reply").await.unwrap();
    connection.send("second reply").await.unwrap();
    drop(connection);
    drop(listener);
    assert_eq!(client.recv().await.unwrap().unwrap(), "first reply");
    assert_eq!(client.recv().await.unwrap().unwrap(), "second reply");
    assert!(client.recv().await.unwrap().is_none());
}

async fn a_dropped_recv_loses_nothing(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let mut connection = listener.accept().await.unwrap();
    // Long ones too, which some engines receive in parts.
    let step = (default_size(kind) - 1) / 100;
    let sending = tokio::spawn(async move {
        for number in 0..100 {
            client
                .send(message(number, 1 + number * step))
                .await
                .unwrap();
            tokio::task::yield_now().await;
        }
        client
    });
    let mut number = 0;
    while number < 100 {
        // Dropped after one poll, and polled again.
        let received = tokio::select! {
            biased;
            received = connection.recv() => received.unwrap().unwrap(),
            () = tokio::task::yield_now() => continue,
        };
        assert!(
            received == message(number, 1 + number * step),
            "message {number}"
        );
        number += 1;
    }
    sending.await.unwrap();
}

/// Sends until a message has to wait for its reader, gives that one up, and returns how many were
/// sent before it.
async fn fill(connection: &mut Connection, size: usize) -> usize {
    for number in 0.. {
        let mut sending = pin!(connection.send(message(number, size)));
        let sent = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        match sent {
            Poll::Ready(sent) => sent.unwrap(),
            Poll::Pending => return number,
        }
    }
    unreachable!("a pipe that takes everything");
}

async fn a_dropped_send_sends_all_of_its_message_or_nothing(kind: Kind) {
    let size = default_size(kind);
    let (mut listener, pipe) = kind.bind(ListenerOptions::new().buffer_size(4096));
    let mut client = pipe.connect().await;
    let mut connection = listener.accept().await.unwrap();
    let sent = fill(&mut connection, size).await;
    let sending = tokio::spawn(async move {
        connection.send("the last").await.unwrap();
    });
    for number in 0..sent {
        let received = client.recv().await.unwrap().unwrap();
        assert!(received == message(number, size), "message {number}");
    }
    let mut received = client.recv().await.unwrap().unwrap();
    if received == message(sent, size) {
        received = client.recv().await.unwrap().unwrap();
    }
    assert_eq!(received, "the last");
    assert!(client.recv().await.unwrap().is_none());
    sending.await.unwrap();
}

async fn a_connection_dropped_in_the_middle_of_a_send_is_closed(kind: Kind) {
    let size = default_size(kind);
    let (mut listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1).buffer_size(4096));
    let mut client = pipe.connect().await;
    let mut connection = listener.accept().await.unwrap();
    let sent = fill(&mut connection, size).await;
    drop(connection);
    // Nobody has read yet, and still the place is free.
    let mut next = pipe.connect().await;
    next.send("hello").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
    let mut number = 0;
    while let Ok(Some(received)) = client.recv().await {
        assert!(received == message(number, size), "message {number}");
        number += 1;
    }
    assert!(number >= sent, "{number} of {sent} messages that were sent");
}

async fn a_dropped_accept_loses_nothing(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let connecting = tokio::spawn(async move {
        let mut client = pipe.connect().await;
        client.send("hello").await.unwrap();
        client
    });
    let mut connection = loop {
        tokio::select! {
            biased;
            connection = listener.accept() => break connection.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    };
    assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
    connecting.await.unwrap();
}

/// Answers "slow" once the gate is opened, and everything else at once.
macro_rules! start_gated {
    ($listener:expr, $gate:expr, $asked:expr) => {{
        let (gate, asked) = (Arc::clone(&$gate), $asked);
        start!($listener, move |request: Bytes| {
            let (gate, asked) = (Arc::clone(&gate), asked.clone());
            async move {
                if request == "slow" {
                    _ = asked.send(());
                    gate.notified().await;
                }
                request
            }
        })
    }};
}

async fn the_reply_to_a_dropped_call_is_not_taken_for_another(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let gate = Arc::new(tokio::sync::Notify::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let _server = start_gated!(listener, gate, asked);
    let mut client = pipe.connect().await;
    for is_received in [false, true, false] {
        tokio::select! {
            reply = client.call("slow") => panic!("{reply:?}"),
            _ = was_asked.recv() => {}
        }
        gate.notify_one();
        if is_received {
            assert_eq!(client.recv().await.unwrap().unwrap(), "slow");
        }
        assert_eq!(client.call("next").await.unwrap(), "next");
    }
}

async fn a_call_may_be_dropped_at_any_point(kind: Kind) {
    let (_server, pipe) = echo_server(kind, ListenerOptions::new().buffer_size(4096));
    let mut client = pipe.connect().await;
    let size = default_size(kind);
    for polls in 0..20 {
        {
            let mut call = pin!(client.call(message(polls, size)));
            for _ in 0..polls {
                let polled = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                if let Poll::Ready(reply) = polled {
                    assert!(reply.unwrap() == message(polls, size), "{polls} polls");
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let next = message(100 + polls, size / 2);
        let reply = client.call(next.clone()).await.unwrap();
        assert!(reply == next, "after {polls} polls");
    }
}

async fn a_call_that_times_out_leaves_a_client_that_can_call_again(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let gate = Arc::new(tokio::sync::Notify::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let _server = start_gated!(listener, gate, asked);
    let time = Duration::from_millis(10);
    let mut client = pipe
        .connect_with(ClientOptions::new().call_timeout(time))
        .await;
    for request in ["slow", "behind the slow one"] {
        let error = client.call(request).await.unwrap_err();
        let timed_out = matches!(error, CallError::TimedOut { after, .. } if after == time);
        assert!(timed_out, "{error:?}");
        assert!(error.to_string().contains("call_timeout"), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    }
    was_asked.recv().await.unwrap();
    gate.notify_one();
    let reply = loop {
        // A busy machine may take longer.
        match client.call("next").await {
            Err(CallError::TimedOut { .. }) => {}
            reply => break reply.unwrap(),
        }
    };
    assert_eq!(reply, "next");
}

async fn an_idle_shutdown_ends_at_once(kind: Kind) {
    let (server, pipe) = echo_server(kind, ListenerOptions::new());
    let mut client = pipe.connect().await;
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    assert!(client.recv().await.unwrap().is_none());
}

/// Serves each request once there is a permit for it.
macro_rules! start_held {
    ($listener:expr, $permits:expr, $asked:expr) => {{
        let (permits, asked) = (Arc::clone(&$permits), $asked);
        start!($listener, move |request: Bytes| {
            let (permits, asked) = (Arc::clone(&permits), asked.clone());
            async move {
                _ = asked.send(());
                permits.acquire().await.unwrap().forget();
                Ok::<_, io::Error>(request)
            }
        })
    }};
}

async fn a_shutdown_lets_a_request_in_progress_finish(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let opened = Arc::new(tokio::sync::Semaphore::new(0));
    let mut server = start_held!(listener, opened, asked);
    let mut client = pipe.connect().await;
    client.send("in progress").await.unwrap();
    was_asked.recv().await.unwrap();
    _ = server.stop.take().unwrap().send(());
    opened.add_permits(1);
    let summary = server.task.await.unwrap();
    assert_eq!(
        (summary.served, summary.aborted, summary.stats.replies),
        (1, 0, 1)
    );
    assert_eq!(client.recv().await.unwrap().unwrap(), "in progress");
}

async fn a_shutdown_answers_every_request_that_was_sent_before(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let opened = Arc::new(tokio::sync::Semaphore::new(0));
    let mut server = start_held!(listener, opened, asked);
    let mut client = pipe.connect().await;
    let requests: Vec<_> = (0..4).map(|number| message(number, 100)).collect();
    for request in &requests {
        client.send(request.clone()).await.unwrap();
    }
    was_asked.recv().await.unwrap();
    _ = server.stop.take().unwrap().send(());
    opened.add_permits(requests.len());
    for request in requests {
        assert_eq!(client.recv().await.unwrap().unwrap(), request);
    }
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.task.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (1, 0));
    assert_eq!((summary.stats.requests, summary.stats.replies), (4, 4));
}

async fn a_shutdown_serves_a_client_that_was_not_accepted_yet(kind: Kind) {
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Whoever serves the socket next serves it.
        return;
    }
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    client.send("early").await.unwrap();
    // Nobody has accepted it when the server begins to shut down.
    let server = start!(listener, echo);
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.stats.replies), (1, 1));
    assert_eq!(client.recv().await.unwrap().unwrap(), "early");
    assert!(client.recv().await.unwrap().is_none());
}

async fn messages_sent_before_receiving_is_closed_arrive_and_no_others(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    for number in 0..20 {
        client.send(message(number, 100)).await.unwrap();
    }
    let mut server = listener.accept().await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), message(0, 100));
    server.close_recv();
    for number in 1..20 {
        assert_eq!(server.recv().await.unwrap().unwrap(), message(number, 100));
    }
    assert!(server.recv().await.unwrap().is_none());
    // Where the system can't stop the client, it still learns that nobody received this.
    let sent = client.send("late").await;
    if cfg!(not(windows)) {
        assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    }
    server.send("the last").await.unwrap();
    server.finish().await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "the last");
    assert!(client.recv().await.unwrap().is_none());
}

/// Receives until the end, while `client` sends another message before each receive, or tries to.
async fn receive_to_the_end(
    server: &mut Connection,
    client: &mut Client,
    another: &[u8],
) -> Vec<Bytes> {
    let mut received = Vec::new();
    loop {
        _ = client.send(another.to_owned()).await;
        match server.recv().await.unwrap() {
            Some(message) => received.push(message),
            None => return received,
        }
        assert!(received.len() < 100, "receiving does not end");
    }
}

async fn messages_sent_before_receiving_is_closed_arrive_however_late_they_are_received(
    kind: Kind,
) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let mut server = listener.accept().await.unwrap();
    for number in 0..5 {
        client.send(message(number, 100)).await.unwrap();
    }
    server.close_recv();
    for number in 0..5 {
        assert_eq!(server.recv().await.unwrap().unwrap(), message(number, 100));
        // Longer than any time that an engine grants to the system after closing.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.recv().await.unwrap().is_none());
}

async fn a_client_that_never_stops_sending_does_not_keep_receiving_from_ending(kind: Kind) {
    // An engine that counts bytes receives many more of the short ones.
    for length in [1, 1000] {
        let (mut listener, pipe) = kind.bind(ListenerOptions::new());
        let mut client = pipe.connect().await;
        let mut server = listener.accept().await.unwrap();
        for number in 0..5 {
            client.send(message(number, 100)).await.unwrap();
        }
        assert_eq!(server.recv().await.unwrap().unwrap(), message(0, 100));
        server.close_recv();
        let another = message(0, length);
        let received = receive_to_the_end(&mut server, &mut client, &another).await;
        for number in 1..5 {
            assert_eq!(received[number - 1], message(number, 100));
        }
        assert!(received[4..].iter().all(|late| *late == another));
        server.send("the last").await.unwrap();
        server.finish().await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), "the last");
        assert!(client.recv().await.unwrap().is_none());
    }
}

async fn a_message_whose_read_has_begun_when_receiving_is_closed_arrives_whole(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let mut server = listener.accept().await.unwrap();
    {
        let mut receiving = pin!(server.recv());
        poll_fn(|cx| {
            assert!(receiving.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    // More than the first read takes, if the engine can.
    let long = message(0, kind.longest().min(20_000));
    client.send(long.clone()).await.unwrap();
    client.send("next").await.unwrap();
    server.close_recv();
    let another = message(0, 1000);
    let received = receive_to_the_end(&mut server, &mut client, &another).await;
    assert!(received[0] == long);
    assert_eq!(received[1], "next");
    assert!(received[2..].iter().all(|late| *late == another));
}

async fn what_a_shutdown_executes_is_answered_though_its_client_never_stops_sending(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let executed = Arc::new(AtomicUsize::new(0));
    let executing = Arc::clone(&executed);
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |request: Bytes| {
        executing.fetch_add(1, Ordering::Relaxed);
        _ = asked.send(());
        async move { Ok::<_, io::Error>(request) }
    };
    let server = start!(listener, handler, drain_timeout(None));
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    // Longer together than the pipe's buffer: there are always requests in the pipe.
    let sending = async {
        let mut sent = 0;
        while sender.send(message(sent, 2000)).await.is_ok() {
            sent += 1;
        }
    };
    let receiving = async {
        let mut replies = 0;
        while let Some(reply) = receiver.recv().await.unwrap() {
            assert_eq!(reply, message(replies, 2000));
            replies += 1;
        }
        replies
    };
    let stopping = async {
        for _ in 0..50 {
            was_asked.recv().await.unwrap();
        }
        server.stop().await
    };
    let (replies, summary) = {
        let mut sending = pin!(sending);
        let mut others = pin!(async { tokio::join!(receiving, stopping) });
        let mut has_sent = false;
        poll_fn(|cx| {
            has_sent = has_sent || sending.as_mut().poll(cx).is_ready();
            others.as_mut().poll(cx)
        })
        .await
    };
    assert_eq!(summary.aborted, 0);
    assert_eq!(executed.load(Ordering::Relaxed), replies);
    assert_eq!(summary.stats.requests, summary.stats.replies);
}

async fn replies_are_received_after_a_send_has_failed(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let mut server = listener.accept().await.unwrap();
    for number in 0..3 {
        server.send(message(number, 100)).await.unwrap();
    }
    drop(server);
    // Tokio's pipe reports a failed write with the next one.
    while client.send("too late").await.is_ok() {}
    for number in 0..3 {
        assert_eq!(client.recv().await.unwrap().unwrap(), message(number, 100));
    }
    assert!(client.recv().await.unwrap().is_none());

    // The halves, too.
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    let mut server = listener.accept().await.unwrap();
    server.send("reply").await.unwrap();
    drop(server);
    while sender.send("too late").await.is_ok() {}
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "reply");
    assert!(receiver.recv().await.unwrap().is_none());
}

async fn a_shutdown_ends_what_is_stuck(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let server = start!(
        listener,
        move |_: Bytes| {
            _ = asked.send(());
            pending::<io::Result<Bytes>>()
        },
        drain_timeout(Duration::from_millis(10))
    );
    let mut client = pipe.connect().await;
    client.send("stuck").await.unwrap();
    was_asked.recv().await.unwrap();
    let summary = server.stop().await;
    assert_eq!(
        (
            summary.served,
            summary.aborted,
            summary.stats.requests,
            summary.stats.replies
        ),
        (0, 1, 1, 0)
    );
    assert!(client.recv().await.unwrap().is_none());
}

async fn after_a_shutdown_nobody_serves_the_name(kind: Kind) {
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Whoever else holds the socket may serve it next, so it is not shut down.
        return;
    }
    let (server, pipe) = echo_server(kind, ListenerOptions::new());
    server.stop().await;
    let error = pipe.try_connect(ClientOptions::new()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotFound { .. }), "{error:?}");
}

async fn clients_that_come_and_go_while_the_server_drains_get_whole_replies_or_none(kind: Kind) {
    let (server, pipe) = echo_server(kind, ListenerOptions::new());
    let pipe = Arc::new(pipe);
    let count = if cfg!(miri) { 20 } else { 200 };
    let barrier = Arc::new(tokio::sync::Barrier::new(count / 2 + 1));
    let clients: Vec<_> = (0..count)
        .map(|number| {
            let (pipe, barrier) = (Arc::clone(&pipe), Arc::clone(&barrier));
            tokio::spawn(async move {
                // Every other one is there before the shutdown begins.
                if number % 2 == 0 {
                    barrier.wait().await;
                }
                let mut client = match pipe.try_connect(ClientOptions::new()).await {
                    Ok(client) => client,
                    Err(error) => {
                        let refused = matches!(error, ConnectError::NotFound { .. });
                        assert!(refused, "{error:?}");
                        return;
                    }
                };
                for round in 0.. {
                    let sent = message(number + round, 1 + number * 20);
                    match client.call(sent.clone()).await {
                        Ok(reply) => assert!(reply == sent, "client {number}, round {round}"),
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    barrier.wait().await;
    let summary = server.stop().await;
    assert_eq!(summary.aborted, 0);
    assert_eq!(summary.stats.requests, summary.stats.replies);
    for client in clients {
        client.await.unwrap();
    }
}

async fn a_slow_handler_is_cut_off(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let _server = start!(
        listener,
        |_: Bytes| pending::<io::Result<Bytes>>(),
        handler_timeout(Duration::from_millis(10))
    );
    assert!(matches!(
        pipe.connect().await.call("x").await,
        Err(CallError::Closed)
    ));
}

async fn a_silent_client_is_cut_off(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let _server = start!(listener, echo, idle_timeout(Duration::from_millis(10)));
    assert!(pipe.connect().await.recv().await.unwrap().is_none());
}

async fn a_client_that_does_not_read_is_cut_off(kind: Kind) {
    let size = kind.longest().min(4000);
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1).buffer_size(4096));
    let server = start!(listener, echo, write_timeout(Duration::from_millis(100)));
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    // Until the replies that nobody reads have filled the pipe and the server has hung up.
    while sender.send(message(0, size)).await.is_ok() {}
    drop((sender, pipe.connect().await));
    while let Ok(Some(_)) = receiver.recv().await {}
    assert_eq!(server.stop().await.aborted, 0);
}

async fn few_replies_wait_for_a_client_that_does_not_read(kind: Kind) {
    let size = kind.longest().min(60_000);
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1).buffer_size(4096));
    let reply = Bytes::from(message(0, size));
    let server = start!(
        listener,
        move |_: Bytes| {
            let reply = reply.clone();
            async move { reply }
        },
        write_timeout(Duration::from_millis(100))
    );
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    while sender.send("x").await.is_ok() {}
    drop((sender, pipe.connect().await));
    let mut received = 0;
    while let Ok(Some(_)) = receiver.recv().await {
        received += 1;
    }
    let unsent = server.stop().await.stats.requests - received;
    let most = 256 * 1024 / size + 2;
    assert!(unsent <= most as u64, "{unsent} replies of {size} bytes");
}

async fn a_handler_is_cancelled_when_its_client_leaves_if_asked(kind: Kind) {
    struct Cancelled(tokio::sync::mpsc::UnboundedSender<&'static str>);
    impl Drop for Cancelled {
        fn drop(&mut self) {
            _ = self.0.send("cancelled");
        }
    }
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (events, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let server = start!(
        listener,
        move |_: Bytes| {
            _ = events.send("asked");
            let cancelled = Cancelled(events.clone());
            async move {
                let _cancelled = cancelled;
                pending::<io::Result<Bytes>>().await
            }
        },
        cancel_on_disconnect(true)
    );
    let mut client = pipe.connect().await;
    client.send("x").await.unwrap();
    assert_eq!(seen.recv().await, Some("asked"));
    drop(client);
    assert_eq!(seen.recv().await, Some("cancelled"));
    assert_eq!(server.stop().await.served, 1);
}

async fn requests_that_nobody_has_begun_do_not_hide_that_their_client_has_left(kind: Kind) {
    // In hand and beyond what is read ahead, and behind the end of the conversation.
    for (further, finishes) in [(1, false), (100, false), (0, true), (1, true)] {
        let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1));
        let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
        let server = start!(
            listener,
            move |request: Bytes| {
                let asked = asked.clone();
                async move {
                    _ = asked.send(request.clone());
                    match &request[..] {
                        b"stuck" => pending::<io::Result<Bytes>>().await,
                        _ => Ok(request),
                    }
                }
            },
            cancel_on_disconnect(true)
        );
        let mut client = pipe.connect().await;
        client.send("stuck").await.unwrap();
        assert_eq!(was_asked.recv().await.unwrap(), "stuck");
        for _ in 0..further {
            client.send("never begun").await.unwrap();
        }
        if finishes {
            client.finish().await.unwrap();
        }
        drop(client);
        // There is one instance: the handler was dropped.
        assert_eq!(pipe.connect().await.call("next").await.unwrap(), "next");
        assert_eq!(was_asked.recv().await.unwrap(), "next");
        let summary = server.stop().await;
        assert_eq!((summary.served, summary.stats.requests), (2, 2));
    }
}

async fn the_peer_of_a_request_is_this_process(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let _server = start!(listener, |request: Request| async move {
        assert_eq!(request.connection_id(), 1);
        let peer = request.peer()?;
        Ok::<_, io::Error>(Reply::from(format!(
            "{} {}",
            peer.process_id(),
            peer.user()
        )))
    });
    let reply = pipe.connect().await.call("who am I?").await.unwrap();
    let process_id = std::process::id().to_string();
    assert!(reply.starts_with(process_id.as_bytes()), "{reply:?}");
}

async fn both_halves_work_at_once(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let (mut receiver, mut sender) = listener.accept().await.unwrap().into_split();
    let receiving = tokio::spawn(async move { receiver.recv().await.unwrap().unwrap() });
    tokio::task::yield_now().await;
    sender.send("unasked").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "unasked");
    client.send("at last").await.unwrap();
    assert_eq!(receiving.await.unwrap(), "at last");
}

#[test]
fn binding_outside_a_runtime_is_an_error_and_no_panic() {
    let error = PipeListener::bind(&support::unique_name().text).unwrap_err();
    assert!(
        error.to_string().contains("outside a Tokio runtime"),
        "{error}"
    );
}

async fn an_empty_message_and_a_close_are_told_apart(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    let mut client = pipe.connect().await;
    let mut server = listener.accept().await.unwrap();
    client.send("last").await.unwrap();
    client.finish().await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), "last");
    assert!(!server.is_half_closed());
    assert!(server.recv().await.unwrap().is_none());
    assert!(server.is_half_closed());
    // In the other direction, through the halves.
    server.finish().await.unwrap();
    let (mut receiver, sender) = client.into_split();
    assert!(receiver.recv().await.unwrap().is_none());
    drop((receiver, sender, server));

    let client = pipe.connect().await;
    let mut server = listener.accept().await.unwrap();
    drop(client);
    assert!(server.recv().await.unwrap().is_none());
    assert!(!server.is_half_closed());
}
