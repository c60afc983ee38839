//! The Windows engine on `tokio::net::windows::named_pipe`, without overlapped I/O of its own.
//!
//! Tokio's pipe emulates readiness on completion-based I/O: mio reads ahead into its own buffer and
//! treats `ERROR_MORE_DATA` as success, so a caller can't tell "the message ended" from "the buffer
//! was full" (tokio#6460, mio#1772). Here every read uses a buffer of 4,096 bytes, the smallest
//! that mio reads with, and a read that fills it counts as too long. So a message of up to 4,095
//! bytes is whole, and a longer one is never taken for two.
//!
//! mio also starts to read before `connect` is called. If the system forgets who its client is at
//! that call (docs/wine.md, *Identity*), a client that opened an instance in the moment of its
//! creation is known only from its second message on, and `authorize` refuses it.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::Interest,
    net::windows::named_pipe::{NamedPipeServer, PipeMode, ServerOptions},
    runtime::Handle,
    time::{Sleep, sleep},
};
use windows_sys::Win32::Foundation::ERROR_NO_DATA;

use super::{
    access_list, code, creation_error, is_closed_error, send_error,
    sys::{self, SecurityDescriptor},
    use_up_instance,
};
use crate::{
    access::Access,
    engine::{Channel, Endpoint, Instance, Link, Receive, Received, Sizes, Transmit},
    error::{RecvError, SendError},
    name::PipeName,
    peer::Peer,
};

/// The size that mio reads with if not given more (`DEFAULT_READ_SIZE` in mio 1.2.5).
const READ_SIZE: usize = 4096;

/// The longest message that can be told from the start of a longer one.
pub(crate) const MAX_MESSAGE_SIZE: usize = READ_SIZE - 1;

/// The time in which mio reports the next thing that has happened before. A turn of the I/O driver
/// takes less, unless the machine is very busy.
const LAST_REPORT: Duration = Duration::from_millis(50);

/// As long as on Linux: no thread that completes I/O runs tasks of this engine.
const TURN: u32 = 64;

/// Serves `name`. The first instance is created with `FILE_FLAG_FIRST_PIPE_INSTANCE`, so nobody
/// else can have the name.
pub(crate) fn bind(
    name: &PipeName,
    access: &Access,
    allow_remote: bool,
    sizes: Sizes,
) -> io::Result<Box<dyn Endpoint>> {
    let mut options = ServerOptions::new();
    // The number of instances is limited by the listener, not here: it needs room for the
    // replacement of a connection that ends at the limit.
    options
        .pipe_mode(PipeMode::Message)
        .reject_remote_clients(!allow_remote)
        .in_buffer_size(sizes.buffer_size)
        .out_buffer_size(sizes.buffer_size);
    Ok(Box::new(TokioEndpoint {
        address: name.address().into(),
        descriptor: access_list::descriptor(access)?,
        options,
        max_message_size: sizes.max_message_size,
        runtime: Handle::current(),
        first: AtomicBool::new(true),
    }))
}

struct TokioEndpoint {
    address: Arc<str>,
    descriptor: SecurityDescriptor,
    options: ServerOptions,
    max_message_size: usize,
    /// Connections are dropped, and so instances created, outside the runtime as well.
    runtime: Handle,
    first: AtomicBool,
}

impl Endpoint for TokioEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        let _runtime = self.runtime.enter();
        let first = self.first.load(Ordering::Relaxed);
        let mut options = self.options.clone();
        options.first_pipe_instance(first);
        let server = sys::create_tokio_server(&options, &self.address, &self.descriptor)
            .map_err(|error| creation_error(error, first))?;
        self.first.store(false, Ordering::Relaxed);
        Ok(Box::new(TokioInstance {
            address: Arc::clone(&self.address),
            connecting: Some(Box::pin(connect(server))),
            connected: None,
            is_closed: false,
            closing: Closing::default(),
            max_message_size: self.max_message_size,
        }))
    }

    fn max_message_size(&self) -> usize {
        self.max_message_size
    }
}

struct TokioInstance {
    address: Arc<str>,
    /// `None` once connected.
    connecting: Option<Pin<Box<dyn Future<Output = Connected> + Send>>>,
    /// Connected, and not returned yet.
    connected: Option<NamedPipeServer>,
    is_closed: bool,
    /// Begins only if `close` could not keep clients out by itself.
    closing: Closing,
    max_message_size: usize,
}

/// The connected instance, or the instance with the error.
type Connected = Result<NamedPipeServer, (NamedPipeServer, io::Error)>;

async fn connect(server: NamedPipeServer) -> Connected {
    match server.connect().await {
        Err(error) if code(&error) != Some(ERROR_NO_DATA) => Err((server, error)),
        // A client that has already left counts: what it wrote is still there.
        _ => Ok(server),
    }
}

impl Instance for TokioInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let not_connected = || Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        if let Some(connecting) = &mut self.connecting {
            let Poll::Ready(connected) = connecting.as_mut().poll(cx) else {
                ready!(self.closing.poll_over(cx));
                return not_connected();
            };
            self.connecting = None;
            match connected {
                Ok(server) => self.connected = Some(server),
                Err((server, error)) => {
                    self.connecting = Some(Box::pin(connect(server)));
                    return Poll::Ready(Err(error));
                }
            }
        }
        let Some(server) = self.connected.take() else {
            return not_connected();
        };
        let mut first = None;
        if self.is_closed && sys::peer_has_left_nothing(&server) {
            // Usually the client that `close` made. Any other one has nothing to be served, unless
            // mio has read its only message.
            match poll_read(&server, cx) {
                Poll::Pending => {
                    self.connected = Some(server);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(message)) if !message.is_empty() => first = Some(message),
                Poll::Ready(_) => return not_connected(),
            }
        }
        Poll::Ready(Ok(channel(server, first, self.max_message_size)))
    }

    /// mio keeps a dropped instance until the system has completed its operations. So an instance
    /// must not be dropped while clients can still connect to it.
    fn close(&mut self) {
        self.is_closed = true;
        if !use_up_instance(&self.address) {
            self.closing.begin();
        }
    }
}

/// Ready with what mio has read: a message, the start of one that is too long, or nothing if the
/// message is empty or the other side has closed.
fn poll_read(server: &NamedPipeServer, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let mut buffer = [0; READ_SIZE];
    loop {
        ready!(server.poll_read_ready(cx))?;
        match server.try_read(&mut buffer) {
            Ok(length) => return Poll::Ready(Ok(Bytes::copy_from_slice(&buffer[..length]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// The time after closing in which messages and clients that came before are still reported. mio
/// has an operation of its own in flight, which can't be cancelled alone, and reports its
/// completion only when the I/O driver runs.
#[derive(Default)]
struct Closing {
    has_begun: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Closing {
    fn begin(&mut self) {
        self.has_begun = true;
    }

    /// Starts the time again: something was reported, and more may follow.
    fn restart(&mut self) {
        self.sleep = None;
    }

    /// Ready once `LAST_REPORT` has passed since closing, or since `restart`. Polled when nothing
    /// is reported.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun {
            return Poll::Pending;
        }
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep(LAST_REPORT)));
        if !sleep.is_elapsed() {
            ready!(sleep.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

/// Returns a channel whose `first` message may already have been read.
fn channel(server: NamedPipeServer, first: Option<Bytes>, max_message_size: usize) -> Channel {
    let link = Arc::new(TokioLink {
        server,
        write_abandoned: AtomicBool::new(false),
    });
    Channel {
        receiver: Box::new(TokioReceiver {
            link: Arc::clone(&link),
            first,
            max_message_size,
            closing: Closing::default(),
            left: None,
        }),
        sender: Box::new(TokioSender {
            link: Arc::clone(&link),
            writing: false,
            pending: None,
        }),
        link,
    }
}

struct TokioLink {
    server: NamedPipeServer,
    /// Whether a write was still waiting for its reader when the sender was dropped.
    write_abandoned: AtomicBool,
}

impl TokioLink {
    /// Hands `message` to mio, and makes Tokio forget that the pipe was writable.
    ///
    /// A successful `try_write` leaves the pipe writable although mio has yet to finish the write,
    /// so there would be nothing to wait for. `try_io` notes the readiness before it calls its
    /// closure and clears no later one, so a write that finishes at that moment is not missed.
    fn write(&self, message: &[u8]) -> io::Result<()> {
        let mut written = Err(io::ErrorKind::WouldBlock.into());
        let forgotten: io::Result<()> = self.server.try_io(Interest::WRITABLE, || {
            written = self.server.try_write(message).map(|_| ());
            Err(io::ErrorKind::WouldBlock.into())
        });
        debug_assert!(forgotten.is_err());
        written
    }
}

impl Link for TokioLink {
    fn peer(&self) -> io::Result<Peer> {
        sys::client_of(&self.server)
    }

    fn is_hung_up(&self) -> bool {
        sys::peer_has_closed(&self.server)
    }
}

impl Drop for TokioLink {
    fn drop(&mut self) {
        // mio keeps a pending write, and with it the instance, until the reader takes it
        // (mio#1944). That write can't be cancelled alone, but nothing else in flight is needed any
        // more. Disconnecting would also discard earlier replies, which the client may still read.
        if self.write_abandoned.load(Ordering::Relaxed) {
            sys::cancel(&self.server);
        }
    }
}

struct TokioReceiver {
    link: Arc<TokioLink>,
    first: Option<Bytes>,
    max_message_size: usize,
    closing: Closing,
    /// Known once this is polled after `close`.
    left: Option<Left>,
}

/// The messages that had been sent but not received when receiving was closed.
///
/// Nothing else is received: a client that always has another message in the pipe would keep the
/// connection open for ever.
struct Left {
    /// Whether mio may have read a message. It reads the next one only when that is taken. If it
    /// has read nothing, a message that is sent later takes its place, and is answered as the
    /// others are.
    in_mio: bool,
    /// The bytes in the pipe.
    bytes: usize,
}

impl Left {
    fn in_pipe(server: &NamedPipeServer) -> Self {
        Self {
            in_mio: true,
            bytes: sys::unread_bytes(server),
        }
    }

    fn is_nothing(&self) -> bool {
        !self.in_mio && self.bytes == 0
    }

    fn take(&mut self, length: usize) {
        if !mem::take(&mut self.in_mio) {
            self.bytes = self.bytes.saturating_sub(length);
        }
    }
}

impl Receive for TokioReceiver {
    fn turn(&self) -> u32 {
        TURN
    }

    fn close(&mut self) {
        self.closing.begin();
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        if self.closing.has_begun {
            let left = || Left::in_pipe(&self.link.server);
            if self.left.get_or_insert_with(left).is_nothing() {
                return Poll::Ready(Ok(Received::End));
            }
        }
        let read = match self.first.take() {
            Some(message) => Poll::Ready(Ok(message)),
            None => poll_read(&self.link.server, cx),
        };
        let Poll::Ready(read) = read else {
            ready!(self.closing.poll_over(cx));
            return Poll::Ready(Ok(Received::End));
        };
        Poll::Ready(match read {
            Ok(message) if message.is_empty() => {
                // An empty message, or the other side has closed: Tokio reports both alike.
                Ok(match sys::peer_has_closed(&self.link.server) {
                    true => Received::Closed,
                    false => Received::End,
                })
            }
            Ok(message) if message.len() > self.max_message_size.min(MAX_MESSAGE_SIZE) => {
                Err(RecvError::TooLong {
                    limit: self.max_message_size,
                })
            }
            Ok(message) => {
                self.closing.restart();
                if let Some(left) = &mut self.left {
                    left.take(message.len());
                }
                Ok(Received::Message(message))
            }
            Err(error) if is_closed_error(&error) => Ok(Received::Closed),
            Err(error) => Err(RecvError::Io(error)),
        })
    }
}

struct TokioSender {
    link: Arc<TokioLink>,
    /// Whether mio holds a message.
    writing: bool,
    /// A message that mio does not hold yet.
    pending: Option<Bytes>,
}

impl Transmit for TokioSender {
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        self.pending = Some(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            if !self.writing && self.pending.is_none() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.link.server.poll_write_ready(cx)).map_err(send_error)?;
            // Ready means that the previous write is done.
            self.writing = false;
            let Some(message) = &self.pending else {
                continue;
            };
            match self.link.write(message) {
                Ok(()) => self.writing = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    let error = sys::write_error(error, message.len());
                    self.pending = None;
                    return Poll::Ready(Err(send_error(error)));
                }
            }
            self.pending = None;
        }
    }

    fn pending(&self) -> usize {
        usize::from(self.pending.is_some()) + usize::from(self.writing)
    }
}

impl Drop for TokioSender {
    fn drop(&mut self) {
        if self.writing {
            self.link.write_abandoned.store(true, Ordering::Relaxed);
        }
    }
}
