//! The order in which the server receives and sends.

use std::{io, sync::Mutex, task::Context};

use tokio::sync::watch;

use super::*;
use crate::{
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
};

/// What the server does to a client's channel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Receives,
    FindsNothing,
    Sends,
}
use Call::{FindsNothing, Receives, Sends};

/// A client that sends each request as soon as it has the reply to the one before, and leaves after the last.
#[derive(Clone)]
struct Client {
    requests: usize,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Client {
    fn count(&self, call: Call) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|&&made| made == call).count()
    }

    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Receive for Client {
    fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let received = self.count(Receives);
        if received > self.count(Sends) {
            self.record(FindsNothing);
            Poll::Pending
        } else if received == self.requests {
            Poll::Ready(Ok(Received::Closed))
        } else {
            self.record(Receives);
            Poll::Ready(Ok(Received::Message("request".into())))
        }
    }
}

impl Transmit for Client {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(&mut self, _: Bytes) -> Result<(), SendError> {
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.record(Sends);
        Poll::Ready(Ok(()))
    }
}

impl Link for Client {
    fn peer(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_hung_up(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_in_lockstep_gets_its_reply_before_the_next_request_is_looked_for() {
    let client = Client {
        requests: 4,
        calls: Arc::default(),
    };
    let channel = Channel {
        receiver: Box::new(client.clone()),
        sender: Box::new(client.clone()),
        link: Arc::new(client.clone()),
    };
    let options = Options {
        idle_timeout: None,
        handler_timeout: None,
        write_timeout: None,
        concurrency: 1,
        cancel_on_disconnect: false,
        max_buffered_bytes: None,
        max_connections_per_user: UserLimit::Nobody,
        #[cfg(windows)]
        inline_completions: false,
    };
    let server = Arc::new(Server {
        handler: Arc::new(|request: Bytes| async move { request }),
        options,
        authorize: None,
        on_connect: None,
        users: Arc::new(Users::new(options.max_connections_per_user, false)),
        budget: Arc::new(Budget::new(options.max_buffered_bytes)),
        stats: Stats::new("lockstep".parse().unwrap()),
    });
    let (_running, shutdown) = watch::channel(());
    let connection = Connection::new(channel, None, 1, 64);
    let mut conversation = Conversation::new(connection, Shutdown::new(shutdown), server);
    conversation.run().await;
    // The first request comes before any reply. Only the second shows that the client waits for replies.
    let known_from_here = [Sends, Receives, Sends, Receives, Sends];
    let calls = client.calls.lock().unwrap();
    assert_eq!(calls[calls.len() - 5..], known_from_here, "{calls:?}");
}
