//! The memory engine: a pipe inside the process.
//!
//! Messages are queued under one lock per direction. A queue takes messages until they hold `buffer_size`
//! bytes; then the sender waits, as on a real pipe. Wakers are called outside the locks: a waker is user
//! code, which may call back into this module.
//!
//! As on Windows, the pipe exists as long as one of its instances does, waiting or connected.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    Channel, Endpoint, Instance, Link, Receive, Received, Sizes, Transmit, faulty::Faults,
};
use crate::{
    error::{RecvError, SendError},
    mutex::Mutex,
    peer::{Peer, UserId},
};

/// As long as that of a socket on Linux.
const TURN: u32 = 64;

/// The name that a memory pipe's clients connect to.
pub(crate) type Switchboard = Arc<Mutex<Board>>;

/// The waiting instances of one memory pipe.
#[derive(Debug)]
pub(crate) struct Board {
    served: bool,
    waiting: VecDeque<Arc<Mutex<Socket>>>,
    /// Cloned for each instance, to count them.
    instances: Arc<()>,
    sizes: Sizes,
}

impl Board {
    /// How many instances exist, waiting or connected.
    pub(crate) fn instances(&self) -> usize {
        Arc::strong_count(&self.instances) - 1
    }
}

/// A waiting instance: empty until a client puts the server's end into it.
#[derive(Default, Debug)]
struct Socket {
    channel: Option<Channel>,
    waker: Option<Waker>,
}

pub(crate) fn bind(sizes: Sizes) -> (Box<dyn Endpoint>, Switchboard) {
    let board = Arc::new(Mutex::new(Board {
        served: true,
        waiting: VecDeque::new(),
        instances: Arc::default(),
        sizes,
    }));
    (
        Box::new(MemoryEndpoint {
            board: Arc::clone(&board),
            max_message_size: sizes.max_message_size,
        }),
        board,
    )
}

/// Connects to a waiting instance, as `CreateFile` does. `faults` apply to both ends of the connection.
///
/// # Errors
///
/// `NotFound` if the pipe is no longer served, `ResourceBusy` if no instance is waiting.
pub(crate) fn connect(
    board: &Switchboard,
    max_message_size: usize,
    faults: Option<&Faults>,
) -> io::Result<Channel> {
    let (socket, instance, sizes) = {
        let mut board = board.lock();
        if !board.served || board.instances() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let socket = board.waiting.pop_front();
        let socket = socket.ok_or(io::ErrorKind::ResourceBusy)?;
        (socket, Arc::clone(&board.instances), board.sizes)
    };
    let buffer_size = sizes.buffer_size as usize;
    let up = Queue::new(buffer_size);
    let down = Queue::new(buffer_size);
    let link = |inbound, outbound, instance| {
        Arc::new(MemoryLink {
            inbound: Arc::clone(inbound),
            outbound: Arc::clone(outbound),
            _instance: instance,
        })
    };
    let server = link(&up, &down, Some(instance));
    let client = link(&down, &up, None);
    let (server, client) = match faults {
        None => (
            channel(server, sizes.max_message_size),
            channel(client, max_message_size),
        ),
        Some(faults) => faults.connected(
            (channel(Arc::clone(&server), sizes.max_message_size), server),
            (channel(Arc::clone(&client), max_message_size), client),
        ),
    };
    let waker = {
        let mut socket = socket.lock();
        socket.channel = Some(server);
        socket.waker.take()
    };
    wake(waker);
    Ok(client)
}

fn channel(link: Arc<MemoryLink>, max_message_size: usize) -> Channel {
    Channel {
        receiver: Box::new(MemoryReceiver {
            link: Arc::clone(&link),
            max_message_size,
        }),
        sender: Box::new(MemorySender {
            link: Arc::clone(&link),
            pending: None,
        }),
        link,
    }
}

struct MemoryEndpoint {
    board: Switchboard,
    max_message_size: usize,
}

impl Endpoint for MemoryEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        let socket = Arc::default();
        let mut board = self.board.lock();
        board.waiting.push_back(Arc::clone(&socket));
        Ok(Box::new(MemoryInstance {
            board: Arc::clone(&self.board),
            socket,
            _instance: Arc::clone(&board.instances),
        }))
    }

    fn max_message_size(&self) -> usize {
        self.max_message_size
    }
}

impl Drop for MemoryEndpoint {
    fn drop(&mut self) {
        self.board.lock().served = false;
    }
}

struct MemoryInstance {
    board: Switchboard,
    socket: Arc<Mutex<Socket>>,
    _instance: Arc<()>,
}

impl Instance for MemoryInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let mut socket = self.socket.lock();
        if let Some(channel) = socket.channel.take() {
            return Poll::Ready(Ok(channel));
        }
        socket.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for MemoryInstance {
    fn drop(&mut self) {
        self.board
            .lock()
            .waiting
            .retain(|socket| !Arc::ptr_eq(socket, &self.socket));
    }
}

/// The messages in flight in one direction.
#[derive(Debug)]
struct Queue {
    state: Mutex<QueueState>,
    buffer_size: usize,
}

#[derive(Default, Debug)]
struct QueueState {
    messages: VecDeque<Bytes>,
    /// The bytes in `messages`.
    held: usize,
    /// How the sender finished: it ended the conversation, or is gone.
    last: Option<Last>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
enum Last {
    End,
    Closed,
}

impl Queue {
    fn new(buffer_size: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            buffer_size,
        })
    }

    fn finish(&self, last: Last) {
        let reader = {
            let mut state = self.state.lock();
            state.last.get_or_insert(last);
            state.reader.take()
        };
        wake(reader);
    }
}

/// One side's end of both queues.
pub(super) struct MemoryLink {
    inbound: Arc<Queue>,
    outbound: Arc<Queue>,
    /// The server's end counts as an instance.
    _instance: Option<Arc<()>>,
}

impl MemoryLink {
    /// Breaks the connection for both sides. Messages in flight are lost.
    pub(super) fn cut(&self) {
        for queue in [&self.inbound, &self.outbound] {
            let (reader, writer) = {
                let mut state = queue.state.lock();
                state.last = Some(Last::Closed);
                state.reader_gone = true;
                state.messages.clear();
                (state.reader.take(), state.writer.take())
            };
            wake(reader);
            wake(writer);
        }
    }
}

impl Peer {
    /// This process and its user, as the peer of a memory pipe.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    pub fn current() -> io::Result<Self> {
        #[cfg(unix)]
        let user = UserId::Uid(rustix::process::geteuid().as_raw());
        #[cfg(windows)]
        let user = UserId::Sid(super::windows::current_user()?);
        let peer = Self::new(std::process::id(), user);
        #[cfg(target_os = "linux")]
        let peer = Self {
            group_id: rustix::process::getegid().as_raw(),
            ..peer
        };
        Ok(peer)
    }
}

impl Link for MemoryLink {
    fn peer(&self) -> io::Result<Peer> {
        Peer::current()
    }

    fn is_hung_up(&self) -> bool {
        self.outbound.state.lock().reader_gone
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.outbound.finish(Last::Closed);
        let writer = {
            let mut inbound = self.inbound.state.lock();
            inbound.reader_gone = true;
            inbound.messages.clear();
            inbound.writer.take()
        };
        wake(writer);
    }
}

struct MemoryReceiver {
    link: Arc<MemoryLink>,
    max_message_size: usize,
}

impl Receive for MemoryReceiver {
    fn expects_more(&self) -> bool {
        !self.link.inbound.state.lock().messages.is_empty()
    }

    fn turn(&self) -> u32 {
        TURN
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let mut state = self.link.inbound.state.lock();
        if let Some(message) = state.messages.pop_front() {
            state.held -= message.len();
            let writer = state.writer.take();
            drop(state);
            wake(writer);
            return Poll::Ready(if message.len() > self.max_message_size {
                Err(RecvError::TooLong {
                    limit: self.max_message_size,
                })
            } else {
                Ok(Received::Message(message))
            });
        }
        match state.last {
            Some(Last::End) => Poll::Ready(Ok(Received::End)),
            Some(Last::Closed) => Poll::Ready(Ok(Received::Closed)),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

struct MemorySender {
    link: Arc<MemoryLink>,
    pending: Option<Bytes>,
}

impl Transmit for MemorySender {
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        self.pending = Some(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(message) = self.pending.take() else {
            return Poll::Ready(Ok(()));
        };
        let queue = &self.link.outbound;
        if message.is_empty() {
            queue.finish(Last::End);
            return Poll::Ready(Ok(()));
        }
        let mut state = queue.state.lock();
        if state.reader_gone || state.last.is_some() {
            return Poll::Ready(Err(SendError::Closed));
        }
        if state.held > 0 && state.held + message.len() > queue.buffer_size {
            state.writer = Some(cx.waker().clone());
            self.pending = Some(message);
            return Poll::Pending;
        }
        // On a real pipe, a message longer than the whole buffer waits for its reader. Here it is accepted
        // when the buffer is empty, so that one task can play both sides.
        state.held += message.len();
        state.messages.push_back(message);
        let reader = state.reader.take();
        drop(state);
        wake(reader);
        Poll::Ready(Ok(()))
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
