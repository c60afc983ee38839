//! What a thread receives with, so that an idle connection holds no buffer.

use std::{array, cell::RefCell, collections::VecDeque, io::IoSliceMut, os::fd::AsRawFd as _};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg};
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::socket::Socket;

/// Messages up to this length are received into per-thread buffers and copied out. The length of one that may be
/// longer is peeked first.
pub(super) const SCRATCH_SIZE: usize = 64 * 1024;

/// The maximum number of messages in one call.
pub(super) const BATCH: usize = 16;

/// The size of the block that a thread's short messages share. A block for each connection would add its size to
/// what an idle one holds. Not larger, because a message that a handler keeps keeps the whole block.
const BLOCK_SIZE: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        headers: MultiHeaders::preallocate(BATCH, None),
        buffers: vec![0; BATCH * SCRATCH_SIZE],
        blocks: Blocks::default(),
    });
}

/// What a thread receives with.
struct Scratch {
    headers: MultiHeaders<()>,
    /// The system allocates the memory of the later ones when they are first used.
    buffers: Vec<u8>,
    blocks: Blocks,
}

/// What messages are copied into. A block is reused once the messages in it are dropped.
#[derive(Default)]
struct Blocks {
    /// Messages share it as long as they fit.
    short: BytesMut,
    /// Holds one message of more than `BLOCK_SIZE` bytes.
    long: BytesMut,
    long_size: usize,
}

/// What was received.
pub(super) enum Packet {
    Message(Bytes),
    /// No bytes: an empty message or the end.
    Empty,
    TooLong,
    /// A packet with descriptors, still in the socket.
    Descriptors,
}

/// Receives one packet of up to `SCRATCH_SIZE` bytes.
pub(super) fn receive_one(socket: &Socket, limit: usize) -> Result<Packet, Errno> {
    SCRATCH.with_borrow_mut(|scratch| {
        let buffer = &mut scratch.buffers[..SCRATCH_SIZE];
        let (_, length) = recv(socket, &mut *buffer, RecvFlags::TRUNC)?;
        Ok(scratch.blocks.packet(buffer.get(..length), limit))
    })
}

/// Receives up to `BATCH` packets in one call (recvmmsg(2)), and returns their number.
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
                // Every further read of an ended socket returns the end again.
                break;
            }
        }
        Ok(found)
    })
}

impl Blocks {
    /// The packet that was read; `None` is one that did not fit.
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
            // In a larger block a message would keep more than twice its length.
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
