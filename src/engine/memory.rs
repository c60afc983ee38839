//! The memory engine: a pipe inside the process.
//!
//! Messages are queued under one lock per direction. A queue takes messages until they hold
//! `buffer_size` bytes; then the sender waits, as on a real pipe. Wakers are called outside the
//! locks: a waker is user code, which may call back into this module.
//!
//! As on Windows, the pipe exists as long as one of its instances does, waiting or connected.

use std::{
    collections::VecDeque,
    io, iter,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Channel, Endpoint, Instance, Link, Receive, Received, Sizes, Transmit};
use crate::{
    error::{RecvError, SendError},
    peer::Peer,
    sync::Mutex,
};

/// The turn of a socket on Linux.
const TURN: u32 = 64;

/// The name that a memory pipe's clients connect to.
#[derive(Debug)]
pub(crate) struct MemoryName {
    sizes: Sizes,
    /// Cloned for each instance, to count them.
    instances: Arc<()>,
    /// Hands each waiting instance its end of a connection. `None` once the listener is dropped.
    waiting: Mutex<Option<VecDeque<oneshot::Sender<Channel>>>>,
}

impl MemoryName {
    /// The number of instances, waiting or connected.
    pub(crate) fn instances(&self) -> usize {
        Arc::strong_count(&self.instances) - 1
    }

    fn take_waiting(&self) -> io::Result<oneshot::Sender<Channel>> {
        let mut waiting = self.waiting.lock();
        let waiting = waiting.as_mut().ok_or(io::ErrorKind::NotFound)?;
        iter::from_fn(|| waiting.pop_front())
            .find(|instance| !instance.is_closed())
            .ok_or_else(|| match self.instances() {
                0 => io::ErrorKind::NotFound.into(),
                _ => io::ErrorKind::ResourceBusy.into(),
            })
    }
}

pub(crate) fn bind(sizes: Sizes) -> (Box<dyn Endpoint>, Arc<MemoryName>) {
    let name = Arc::new(MemoryName {
        sizes,
        instances: Arc::default(),
        waiting: Mutex::new(Some(VecDeque::new())),
    });
    (Box::new(MemoryEndpoint(Arc::clone(&name))), name)
}

/// Connects to a waiting instance, as `CreateFile` does. `wrap` may replace the channels of both
/// ends, the server's first.
///
/// # Errors
///
/// `NotFound` if the pipe is no longer served, `ResourceBusy` if no instance is waiting.
pub(crate) fn connect(
    name: &MemoryName,
    max_message_size: usize,
    wrap: impl FnOnce([Channel; 2], &Wire) -> [Channel; 2],
) -> io::Result<Channel> {
    let instance = name.take_waiting()?;
    let (up, down) = (Queue::new(name.sizes), Queue::new(name.sizes));
    let link = |inbound: &Arc<_>, outbound: &Arc<_>, instance| MemoryLink {
        inbound: Arc::clone(inbound),
        outbound: Arc::clone(outbound),
        _instance: instance,
    };
    let instances = Arc::clone(&name.instances);
    let server = channel(
        link(&up, &down, Some(instances)),
        name.sizes.max_message_size,
    );
    let client = channel(link(&down, &up, None), max_message_size);
    let [server, client] = wrap([server, client], &Wire([up, down]));
    // The listener was closed or dropped meanwhile.
    let refused = |_| io::ErrorKind::NotFound;
    instance.send(server).map_err(refused)?;
    Ok(client)
}

fn channel(link: MemoryLink, max_message_size: usize) -> Channel {
    let link = Arc::new(link);
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

struct MemoryEndpoint(Arc<MemoryName>);

impl Endpoint for MemoryEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        let (connection, channel) = oneshot::channel();
        if let Some(waiting) = &mut *self.0.waiting.lock() {
            waiting.retain(|instance| !instance.is_closed());
            waiting.push_back(connection);
        }
        Ok(Box::new(MemoryInstance {
            channel: Some(channel),
            _instance: Arc::clone(&self.0.instances),
        }))
    }

    fn max_message_size(&self) -> usize {
        self.0.sizes.max_message_size
    }
}

impl Drop for MemoryEndpoint {
    fn drop(&mut self) {
        let waiting = self.0.waiting.lock().take();
        // Outside the lock: it wakes the tasks that wait.
        drop(waiting);
    }
}

struct MemoryInstance {
    /// `None` once connected.
    channel: Option<oneshot::Receiver<Channel>>,
    _instance: Arc<()>,
}

impl Instance for MemoryInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let channel = self.channel.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let channel = ready!(Pin::new(channel).poll(cx));
        self.channel = None;
        Poll::Ready(channel.map_err(io::Error::other))
    }

    fn close(&mut self) {
        if let Some(channel) = &mut self.channel {
            channel.close();
        }
    }
}

/// Both directions of a connection.
#[derive(Clone)]
pub(crate) struct Wire([Arc<Mutex<Queue>>; 2]);

impl Wire {
    /// Breaks the connection for both sides. Messages in flight are lost.
    pub(super) fn cut(&self) {
        for queue in &self.0 {
            abandon(queue);
            finish(queue, Received::Closed);
        }
    }
}

/// The messages in flight in one direction.
#[derive(Default)]
struct Queue {
    /// The number of bytes it takes before the sender waits.
    buffer_size: usize,
    messages: VecDeque<Bytes>,
    /// The bytes in `messages`.
    held: usize,
    /// `End` or `Closed`, once the sender has ended the conversation or is gone.
    last: Option<Received>,
    reader_gone: bool,
    /// The reader waits while there is no message, the sender while there is no room: never both.
    waker: Option<Waker>,
}

impl Queue {
    fn new(sizes: Sizes) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            buffer_size: sizes.buffer_size as usize,
            ..Self::default()
        }))
    }
}

/// The sender sends nothing more.
fn finish(queue: &Mutex<Queue>, last: Received) {
    let mut queue = queue.lock();
    queue.last.get_or_insert(last);
    unlock(queue);
}

/// The reader receives nothing more.
fn abandon(queue: &Mutex<Queue>) {
    let mut queue = queue.lock();
    queue.reader_gone = true;
    queue.messages.clear();
    unlock(queue);
}

/// Wakes the task that waits for a change of the queue.
fn unlock(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One side's end of both queues.
struct MemoryLink {
    inbound: Arc<Mutex<Queue>>,
    outbound: Arc<Mutex<Queue>>,
    /// The server's end counts as an instance.
    _instance: Option<Arc<()>>,
}

impl Link for MemoryLink {
    fn peer(&self) -> io::Result<Peer> {
        Peer::current()
    }

    fn is_hung_up(&self) -> bool {
        self.outbound.lock().reader_gone
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        finish(&self.outbound, Received::Closed);
        abandon(&self.inbound);
    }
}

struct MemoryReceiver {
    link: Arc<MemoryLink>,
    max_message_size: usize,
}

impl Receive for MemoryReceiver {
    fn expects_more(&self) -> bool {
        !self.link.inbound.lock().messages.is_empty()
    }

    fn turn(&self) -> u32 {
        TURN
    }

    fn close(&mut self) {
        finish(&self.link.inbound, Received::End);
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let mut queue = self.link.inbound.lock();
        let Some(message) = queue.messages.pop_front() else {
            if let Some(last) = &queue.last {
                return Poll::Ready(Ok(last.clone()));
            }
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        queue.held -= message.len();
        unlock(queue);
        Poll::Ready(match self.max_message_size {
            limit if message.len() > limit => Err(RecvError::TooLong { limit }),
            _ => Ok(Received::Message(message)),
        })
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
            finish(queue, Received::End);
            return Poll::Ready(Ok(()));
        }
        let mut queue = queue.lock();
        if queue.reader_gone || queue.last.is_some() {
            return Poll::Ready(Err(SendError::Closed));
        }
        if queue.held > 0 && queue.held + message.len() > queue.buffer_size {
            queue.waker = Some(cx.waker().clone());
            self.pending = Some(message);
            return Poll::Pending;
        }
        // On a real pipe, a message longer than the whole buffer waits for its reader. Here it is
        // accepted when the buffer is empty, so that one task can play both sides.
        queue.held += message.len();
        queue.messages.push_back(message);
        unlock(queue);
        Poll::Ready(Ok(()))
    }

    fn pending(&self) -> usize {
        usize::from(self.pending.is_some())
    }
}
