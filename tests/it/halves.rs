//! The halves of a connection, and connections that are made of them again, on every engine.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use pipe_server::{
    Client, ClientOptions, Connection, ListenerOptions, PipeListener, ReuniteError, SendError,
    SendHalf,
};

use support::{Kind, Pipe, message, on_every_engine};
use tokio::time::sleep;

on_every_engine! {
    a_half_knows_its_connection,
    a_half_says_that_the_other_side_has_closed,
    reunited_halves_go_on,
    a_message_that_was_started_before_is_sent_by_the_reunited_connection,
    a_direction_that_has_ended_stays_so_in_the_reunited_connection,
    halves_of_different_connections_are_given_back,
}

const LIMIT: usize = 2000;

/// A pipe with one client.
struct Connected {
    client: Client,
    connection: Connection,
    listener: PipeListener,
    pipe: Pipe,
}

impl Connected {
    async fn new(kind: Kind) -> Self {
        let (mut listener, pipe) = kind.bind(ListenerOptions::new().max_message_size(LIMIT));
        let client = pipe.connect().await;
        let connection = listener.accept().await.unwrap();
        Self {
            client,
            connection,
            listener,
            pipe,
        }
    }
}

async fn a_half_knows_its_connection(kind: Kind) {
    let Connected {
        mut client,
        mut connection,
        listener: _listener,
        pipe,
    } = Connected::new(kind).await;
    // Windows identifies a client only then.
    client.send("hello").await.unwrap();
    connection.recv().await.unwrap();
    let peer = connection.peer().unwrap();
    let (receiver, sender) = connection.into_split();
    assert_eq!((receiver.id(), sender.id()), (1, 1));
    assert_eq!(receiver.max_message_size(), LIMIT);
    assert_eq!(sender.max_message_size(), LIMIT);
    assert_eq!(receiver.peer().unwrap(), peer);
    assert_eq!(sender.peer().unwrap(), peer);
    drop(client);

    let options = ClientOptions::new().max_message_size(1234);
    let client = pipe.connect_with(options).await;
    assert_eq!(client.max_message_size(), 1234);
    let (receiver, sender) = client.into_split();
    assert_eq!((receiver.id(), sender.id()), (0, 0));
    assert_eq!(receiver.max_message_size(), 1234);
    assert_eq!(sender.max_message_size(), 1234);
}

/// Also while a message can still be received.
async fn a_half_says_that_the_other_side_has_closed(kind: Kind) {
    let Connected {
        mut client,
        connection,
        listener: _listener,
        pipe: _pipe,
    } = Connected::new(kind).await;
    let (mut receiver, _sender) = connection.into_split();
    client.send("hello").await.unwrap();
    assert!(!receiver.is_hung_up());
    client.finish().await.unwrap();
    assert!(!receiver.is_hung_up());
    drop(client);
    while !receiver.is_hung_up() {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "hello");
    assert!(receiver.recv().await.unwrap().is_none());
}

async fn reunited_halves_go_on(kind: Kind) {
    let Connected {
        mut client,
        connection,
        listener: _listener,
        pipe: _pipe,
    } = Connected::new(kind).await;
    client.send("one").await.unwrap();
    let (mut receiver, mut sender) = connection.into_split();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "one");
    sender.send("two").await.unwrap();
    let mut connection = receiver.reunite(sender).unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "two");
    connection.send("three").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "three");
    client.send("four").await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "four");
}

/// Sends until the other side has to read, and returns how many messages were started.
async fn fill(sender: &mut SendHalf) -> usize {
    for number in 0.. {
        let mut sending = pin!(sender.send(message(number, LIMIT)));
        let sent = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        match sent {
            Poll::Ready(sent) => sent.unwrap(),
            Poll::Pending => return number + 1,
        }
    }
    unreachable!("a pipe is never full");
}

async fn a_message_that_was_started_before_is_sent_by_the_reunited_connection(kind: Kind) {
    let Connected {
        mut client,
        connection,
        listener: _listener,
        pipe: _pipe,
    } = Connected::new(kind).await;
    let (receiver, mut sender) = connection.into_split();
    let started = fill(&mut sender).await;
    let mut connection = receiver.reunite(sender).unwrap();
    let ending = async {
        connection.finish().await.unwrap();
    };
    let receiving = async {
        for number in 0..started {
            let received = client.recv().await.unwrap().unwrap();
            assert_eq!(received, message(number, LIMIT));
        }
        assert_eq!(client.recv().await.unwrap(), None);
    };
    tokio::join!(ending, receiving);
}

async fn a_direction_that_has_ended_stays_so_in_the_reunited_connection(kind: Kind) {
    let Connected {
        mut client,
        connection,
        listener: _listener,
        pipe: _pipe,
    } = Connected::new(kind).await;
    client.send("before").await.unwrap();
    let (mut receiver, mut sender) = connection.into_split();
    sender.finish().await.unwrap();
    receiver.close();
    let mut connection = receiver.reunite(sender).unwrap();
    let refused = connection.send("after").await;
    assert!(matches!(refused, Err(SendError::Finished)), "{refused:?}");
    assert_eq!(connection.recv().await.unwrap().unwrap(), "before");
    assert_eq!(connection.recv().await.unwrap(), None);
    assert_eq!(client.recv().await.unwrap(), None);
}

async fn halves_of_different_connections_are_given_back(kind: Kind) {
    let Connected {
        mut client,
        connection,
        mut listener,
        pipe,
    } = Connected::new(kind).await;
    let _other_client = pipe.connect().await;
    let other = listener.accept().await.unwrap();
    let ((receiver, sender), (other_receiver, other_sender)) =
        (connection.into_split(), other.into_split());
    let error = receiver.reunite(other_sender).unwrap_err();
    assert!(
        error.to_string().contains("different connections"),
        "{error}"
    );
    let ReuniteError(receiver, other_sender) = error;
    assert_eq!((receiver.id(), other_sender.id()), (1, 2));
    let mut connection = receiver.reunite(sender).unwrap();
    connection.send("still there").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "still there");
    assert_eq!(other_receiver.reunite(other_sender).unwrap().id(), 2);
}
