//! Hostile clients that every engine can show. Beside each of them a well-behaved client loses,
//! splits and repeats nothing, and nothing of them is left. `hostile.rs` has those of Linux alone,
//! `tests/soak.rs` all of them mixed.

use std::{
    future::{Future, IntoFuture as _, poll_fn},
    pin::pin,
    task::Poll,
};

use pipe_server::{Bytes, Client, ListenerOptions, Summary, serve};
use support::{Kind, Pipe, message, on_every_engine};
use tokio::{sync::oneshot, task::yield_now};

on_every_engine! {
    messages_that_are_too_long_cost_their_senders_the_connection,
    clients_that_connect_send_and_close_in_a_loop_keep_nobody_waiting,
    clients_that_never_read_keep_nobody_waiting,
    clients_that_never_send_keep_nobody_waiting,
}

const LONGEST: usize = 1000;

/// How many hostile clients there are. Miri is slow, and so are many seeds.
const HOSTILE: usize = if cfg!(any(miri, pipe_model)) { 4 } else { 40 };

/// Runs the attack on an echo server, one hostile client after the other, each at the same time as
/// a conversation of the well-behaved one. What they return stays to the end. Returns what the
/// server has done, and how many requests the well-behaved clients have sent.
async fn attack(
    kind: Kind,
    hostile: impl AsyncFn(&Pipe, usize) -> Option<Client>,
) -> (Summary, u64) {
    let options = ListenerOptions::new().max_message_size(LONGEST);
    let (listener, pipe) = kind.bind(options.buffer_size(4096));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(async { _ = stopped.await });
    let server = tokio::spawn(serving.into_future());

    let mut client = pipe.connect().await;
    let mut sent = 0;
    let mut held = Vec::new();
    for number in 0..HOSTILE {
        let (stays, answered) = tokio::join!(hostile(&pipe, number), converse(&mut client));
        held.extend(stays);
        sent += answered;
    }
    let mut next = pipe.connect().await;
    sent += converse(&mut next).await;
    sent += converse(&mut client).await;
    drop((client, next, held));
    stop.send(()).unwrap();
    (server.await.unwrap(), sent)
}

/// Calls, then sends several messages and receives their replies.
async fn converse(client: &mut Client) -> u64 {
    let messages = [1, LONGEST, 7].map(|length| message(length, length));
    for message in &messages {
        assert!(client.call(message.clone()).await.unwrap() == *message);
    }
    for message in &messages {
        client.send(message.clone()).await.unwrap();
    }
    for message in &messages {
        assert!(client.recv().await.unwrap().unwrap() == *message);
    }
    2 * messages.len() as u64
}

async fn messages_that_are_too_long_cost_their_senders_the_connection(kind: Kind) {
    let (summary, sent) = attack(kind, async |pipe, number| {
        let mut client = pipe.connect().await;
        client.send("before").await.unwrap();
        client.send(message(number, LONGEST + 1)).await.unwrap();
        // The server may have closed by now.
        _ = client.send("behind").await;
        assert_eq!(client.recv().await.unwrap().unwrap(), "before");
        assert!(client.recv().await.unwrap().is_none());
        Some(client)
    })
    .await;
    let hostile = HOSTILE as u64;
    assert_eq!((summary.served, summary.aborted), (hostile + 2, 0));
    assert_eq!(summary.stats.requests, sent + hostile);
    assert_eq!(summary.stats.replies, sent + hostile);
}

async fn clients_that_connect_send_and_close_in_a_loop_keep_nobody_waiting(kind: Kind) {
    let (summary, sent) = attack(kind, async |pipe, number| {
        let mut client = pipe.connect().await;
        client.send(message(number, 100)).await.unwrap();
        None
    })
    .await;
    let hostile = HOSTILE as u64;
    assert_eq!((summary.served, summary.aborted), (hostile + 2, 0));
    // What they sent is still read.
    assert_eq!(summary.stats.requests, sent + hostile);
    assert!((sent..=sent + hostile).contains(&summary.stats.replies));
}

async fn clients_that_never_read_keep_nobody_waiting(kind: Kind) {
    let (summary, sent) = attack(kind, async |pipe, _| {
        let mut client = pipe.connect().await;
        // Until the replies that it does not read have filled the pipe, or about so.
        for number in 0..50 {
            let mut sending = pin!(client.send(message(number, LONGEST)));
            let sent = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_ready()));
            if !sent.await {
                break;
            }
            yield_now().await;
        }
        Some(client)
    })
    .await;
    assert_eq!((summary.served, summary.aborted), (HOSTILE as u64 + 2, 0));
    assert!(summary.stats.replies >= sent);
}

async fn clients_that_never_send_keep_nobody_waiting(kind: Kind) {
    let (summary, sent) = attack(kind, async |pipe, _| Some(pipe.connect().await)).await;
    assert_eq!((summary.served, summary.aborted), (HOSTILE as u64 + 2, 0));
    assert_eq!(
        (summary.stats.requests, summary.stats.replies),
        (sent, sent)
    );
}
