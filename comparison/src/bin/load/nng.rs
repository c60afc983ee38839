//! nng: one REQ socket per client, with one context per request that may be in flight.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nng::{
    Aio, AioResult, Context, Message, Protocol, Socket,
    options::{Options as _, RecvMaxSize},
};
use pipe_server_cli::{
    exit::Failure,
    load::{self, Options, Transport},
};
use tokio::sync::{mpsc, oneshot};

/// Connections to one address.
#[derive(Clone, Debug)]
pub(crate) struct Requester {
    address: String,
    depth: usize,
}

impl Requester {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            address: options.pipe_name.to_path().display().to_string(),
            depth: options.depth as usize,
        }
    }
}

type Reply = Result<Message, nng::Error>;

/// One request at a time, whose reply goes to `asker`.
struct Exchange {
    context: Context,
    aio: Aio,
    asker: Arc<Mutex<Option<oneshot::Sender<Reply>>>>,
}

impl Exchange {
    fn new(socket: &Socket) -> nng::Result<Self> {
        let context = Context::new(socket)?;
        let asker = Arc::new(Mutex::new(None::<oneshot::Sender<Reply>>));
        let (receiving, answered) = (context.clone(), Arc::clone(&asker));
        let aio = Aio::new(move |aio, result| {
            let reply = match result {
                AioResult::Send(Ok(())) => match receiving.recv(&aio) {
                    Ok(()) => return,
                    Err(error) => Err(error),
                },
                AioResult::Send(Err((_, error))) => Err(error),
                AioResult::Recv(reply) => reply,
                AioResult::Sleep(_) => return,
            };
            let asker = answered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(asker) = asker {
                _ = asker.send(reply);
            }
        })?;
        Ok(Self {
            context,
            aio,
            asker,
        })
    }
}

impl Drop for Exchange {
    /// The running callback holds the `Aio` too. If it dropped the last reference, it would wait for itself.
    fn drop(&mut self) {
        self.aio.cancel();
        self.aio.wait();
    }
}

impl Transport for Requester {
    type Sender = Sender;
    type Receiver = Receiver;

    const IO_DRIVER: bool = false;

    async fn connect(&self) -> Result<(Sender, Receiver), Failure> {
        let open = || -> nng::Result<(Sender, Receiver)> {
            let socket = Socket::new(Protocol::Req0)?;
            socket.set_opt::<RecvMaxSize>(0)?;
            socket.dial(&format!("ipc://{}", self.address))?;
            let exchanges: nng::Result<_> =
                (0..self.depth).map(|_| Exchange::new(&socket)).collect();
            let (asked, replies) = mpsc::unbounded_channel();
            let sender = Sender {
                _socket: socket,
                exchanges: exchanges?,
                next: 0,
                asked,
            };
            let receiver = Receiver {
                replies,
                oldest: None,
            };
            Ok((sender, receiver))
        };
        open().map_err(|error| Failure::new(format!("can't connect to {}: {error}", self.address)))
    }

    fn address(&self) -> &str {
        &self.address
    }
}

pub(crate) struct Sender {
    exchanges: Vec<Exchange>,
    next: usize,
    asked: mpsc::UnboundedSender<oneshot::Receiver<Reply>>,
    _socket: Socket,
}

impl load::Sender for Sender {
    async fn send(&mut self, message: Bytes) -> Result<(), String> {
        // Round robin: this exchange's reply was received longest ago.
        let exchange = &self.exchanges[self.next];
        self.next = (self.next + 1) % self.exchanges.len();
        let (asker, reply) = oneshot::channel();
        *exchange
            .asker
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(asker);
        _ = self.asked.send(reply);
        exchange
            .context
            .send(&exchange.aio, &message[..])
            .map_err(|(_, error)| error.to_string())
    }
}

pub(crate) struct Receiver {
    replies: mpsc::UnboundedReceiver<oneshot::Receiver<Reply>>,
    oldest: Option<oneshot::Receiver<Reply>>,
}

impl load::Receiver for Receiver {
    async fn recv(&mut self) -> Result<Option<Bytes>, String> {
        if self.oldest.is_none() {
            self.oldest = self.replies.recv().await;
        }
        let Some(reply) = &mut self.oldest else {
            return Ok(None);
        };
        let reply = reply.await;
        self.oldest = None;
        match reply {
            Ok(Ok(message)) => Ok(Some(Bytes::copy_from_slice(&message))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Ok(None),
        }
    }
}
