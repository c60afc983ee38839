//! ZeroMQ: one DEALER socket per client, which is a REQ socket that can have several requests in flight.

use std::{
    os::fd::RawFd,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use pipe_server_cli::{
    exit::Failure,
    load::{Options, Receiver, Sender, Transport},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Connections to one address.
#[derive(Clone)]
pub(crate) struct Dealer {
    /// The newest one; a context holds 1,023 sockets.
    context: Arc<Mutex<zmq::Context>>,
    address: String,
}

impl Dealer {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            context: Arc::default(),
            address: options.pipe_name.to_path().display().to_string(),
        }
    }

    fn socket(&self) -> zmq::Result<zmq::Socket> {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        match context.socket(zmq::DEALER) {
            // The context is full. Its sockets keep it alive.
            Err(zmq::Error::EMFILE) => {
                *context = zmq::Context::new();
                match context.socket(zmq::DEALER) {
                    // No file descriptors are left for another context.
                    Err(zmq::Error::EFAULT) => Err(zmq::Error::EMFILE),
                    made => made,
                }
            }
            made => made,
        }
    }
}

impl Transport for Dealer {
    type Sender = Half;
    type Receiver = Half;

    const IO_DRIVER: bool = true;

    #[allow(
        deprecated,
        reason = "ZeroMQ returns a raw file descriptor; the socket keeps it open"
    )]
    async fn connect(&self) -> Result<(Half, Half), Failure> {
        let open = || -> Result<Half, Box<dyn std::error::Error>> {
            let socket = self.socket()?;
            socket.set_linger(0)?;
            socket.connect(&format!("ipc://{}", self.address))?;
            let events = AsyncFd::with_interest(socket.get_fd()?, Interest::READABLE)?;
            Ok(Half {
                events: Arc::new(events),
                socket: Arc::new(Mutex::new(socket)),
            })
        };
        match open() {
            Ok(half) => Ok((half.clone(), half)),
            Err(error) => Err(Failure::new(format!(
                "can't connect to {}: {error}",
                self.address
            ))),
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}

/// A socket, and the descriptor that signals when it may be ready. Readiness is only a hint: a woken task has to
/// try the operation.
#[derive(Clone)]
pub(crate) struct Half {
    events: Arc<AsyncFd<RawFd>>,
    socket: Arc<Mutex<zmq::Socket>>,
}

impl Half {
    async fn attempt<T>(
        &self,
        mut action: impl FnMut(&zmq::Socket) -> zmq::Result<T>,
    ) -> Result<T, String> {
        loop {
            let done = action(&self.socket.lock().unwrap_or_else(PoisonError::into_inner));
            match done {
                Err(zmq::Error::EAGAIN) => {
                    let waited = self.events.readable().await;
                    waited.map_err(|error| error.to_string())?.clear_ready();
                }
                other => return other.map_err(|error| error.to_string()),
            }
        }
    }
}

impl Sender for Half {
    async fn send(&mut self, message: Bytes) -> Result<(), String> {
        // A REP socket expects an empty frame between the address and the content.
        self.attempt(|socket| socket.send_multipart([&b""[..], &message], zmq::DONTWAIT))
            .await
    }
}

impl Receiver for Half {
    async fn recv(&mut self) -> Result<Option<Bytes>, String> {
        let message = self.attempt(|socket| {
            // All parts of a message arrive together.
            socket.recv_msg(zmq::DONTWAIT)?;
            socket.recv_bytes(zmq::DONTWAIT)
        });
        Ok(Some(message.await?.into()))
    }
}
