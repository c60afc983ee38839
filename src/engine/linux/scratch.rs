//! The receive buffers of a thread, so that an idle connection holds no buffer.

use std::{array, cell::RefCell, collections::VecDeque, io::IoSliceMut, os::fd::AsRawFd as _};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg};
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::socket::Socket;

/// The size of each receive buffer. Messages are copied out of it. If `max_message_size` is larger,
/// each message is peeked first, and longer ones are received without this buffer.
pub(super) const SCRATCH_SIZE: usize = 64 * 1024;

/// The maximum number of messages in one system call.
pub(super) const BATCH: usize = 16;

/// The size of the block that the short messages of a thread share. One block per connection would
/// make an idle connection larger. A larger block would waste more memory, because a handler that
/// keeps one message keeps the whole block.
const BLOCK_SIZE: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        headers: MultiHeaders::preallocate(BATCH, None),
        buffers: vec![0; BATCH * SCRATCH_SIZE],
        blocks: Blocks::default(),
    });
}

/// The receive buffers of a thread, and the blocks for the messages that it received.
struct Scratch {
    headers: MultiHeaders<()>,
    /// Zeroed memory: the system allocates a page when it is first written.
    buffers: Vec<u8>,
    blocks: Blocks,
}

/// The memory that messages are copied into. A block is reused once all messages in it are dropped.
#[derive(Default)]
struct Blocks {
    /// Shared by messages until it is full.
    short: BytesMut,
    /// Holds one message longer than `BLOCK_SIZE`.
    long: BytesMut,
    long_size: usize,
}

/// A received packet.
pub(super) enum Packet {
    Message(Bytes),
    /// A packet of 0 bytes: an empty message, or the end.
    Empty,
    TooLong,
    /// A packet that passes descriptors. It is still in the socket.
    Descriptors,
}

/// Receives one packet. A packet longer than `SCRATCH_SIZE` is `TooLong`.
pub(super) fn receive_one(socket: &Socket, limit: usize) -> Result<Packet, Errno> {
    SCRATCH.with_borrow_mut(|scratch| {
        let buffer = &mut scratch.buffers[..SCRATCH_SIZE];
        let (_, length) = recv(socket, &mut *buffer, RecvFlags::TRUNC)?;
        Ok(scratch.blocks.packet(buffer.get(..length), limit))
    })
}

/// Receives up to `BATCH` packets in one recvmmsg(2), and returns their number.
pub(super) fn receive_batch(
    socket: &Socket,
    limit: usize,
    packets: &mut VecDeque<Packet>,
) -> Result<usize, Errno> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut lengths = [None; BATCH];
        let mut found = 0;
        {
            let mut buffers = scratch.buffers.chunks_exact_mut(SCRATCH_SIZE);
            let mut slices: [_; BATCH] =
                array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
            let messages = recvmmsg(
                socket.as_raw_fd(),
                &mut scratch.headers,
                &mut slices,
                MsgFlags::MSG_DONTWAIT,
                None,
            )
            .map_err(|error| Errno::from_raw_os_error(error as i32))?;
            for (message, length) in messages.zip(&mut lengths) {
                let is_cut = message.flags.contains(MsgFlags::MSG_TRUNC);
                *length = (!is_cut).then_some(message.bytes);
                found += 1;
            }
        }
        let buffers = scratch.buffers.chunks_exact(SCRATCH_SIZE);
        for (length, buffer) in lengths[..found].iter().zip(buffers) {
            let packet = length.map(|length| &buffer[..length]);
            let packet = scratch.blocks.packet(packet, limit);
            let is_message = matches!(packet, Packet::Message(_));
            packets.push_back(packet);
            if !is_message {
                // Further packets of the batch are not messages: an ended socket returns the end
                // again.
                break;
            }
        }
        Ok(found)
    })
}

impl Blocks {
    /// Converts a packet that was read. `None` means that it did not fit.
    fn packet(&mut self, read: Option<&[u8]>, limit: usize) -> Packet {
        match read {
            Some([]) => Packet::Empty,
            Some(message) if message.len() <= limit => Packet::Message(self.copy(message)),
            _ => Packet::TooLong,
        }
    }

    fn copy(&mut self, message: &[u8]) -> Bytes {
        let length = message.len();
        let block = if length <= BLOCK_SIZE {
            if self.short.capacity() < length && !self.short.try_reclaim(BLOCK_SIZE) {
                self.short = BytesMut::with_capacity(BLOCK_SIZE);
            }
            &mut self.short
        } else {
            // A block of more than twice the length would waste memory if the message is kept.
            let fits = (length..=2 * length).contains(&self.long_size);
            if !fits || !self.long.try_reclaim(self.long_size) {
                self.long = BytesMut::with_capacity(length);
                self.long_size = length;
            }
            &mut self.long
        };
        block.extend_from_slice(message);
        block.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_kept_keeps_no_block_that_a_longer_one_left() {
        for (length, limit) in [(1, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE), (2000, 4000)] {
            let mut blocks = Blocks::default();
            drop(blocks.copy(&[0; SCRATCH_SIZE]));
            let kept = blocks.copy(&vec![0; length]);
            drop(blocks);
            let block = kept.try_into_mut().unwrap();
            assert!(block.capacity() <= limit, "{length}: {}", block.capacity());
        }
    }
}
