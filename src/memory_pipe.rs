//! A pipe inside this process, for tests.
#![cfg(feature = "test-util")]

use std::path::PathBuf;

use crate::{
    client::{Client, ClientOptions},
    defaults,
    engine::{
        Sizes,
        memory::{self, Switchboard},
    },
    error::{BindError, ConnectError, OutOfRange},
    listener::{ListenerOptions, PipeListener},
    name::PipeName,
};

/// A pipe inside this process, from [`ListenerOptions::bind_memory`].
#[derive(Clone, Debug)]
pub struct MemoryPipe {
    board: Switchboard,
}

impl MemoryPipe {
    /// Connects with the default [`ClientOptions`].
    ///
    /// # Errors
    ///
    /// As [`ClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        ClientOptions::new().connect_memory(self).await
    }
}

impl ListenerOptions {
    /// Serves a pipe inside this process, for tests of a handler: no pipe of the system is made.
    ///
    /// Ignores `access`, and `engine` on Windows.
    ///
    /// # Errors
    ///
    /// [`BindError::Option`] for an option that is out of range.
    pub fn bind_memory(&self) -> Result<(PipeListener, MemoryPipe), BindError> {
        self.check()?;
        let (endpoint, board) = memory::bind(sizes(self.max_message_size, self.buffer_size)?);
        let name: PipeName = "memory".parse()?;
        let path = PathBuf::from("memory");
        let listener = self.listen(name, path, endpoint)?;
        Ok((listener, MemoryPipe { board }))
    }
}

impl ClientOptions {
    /// Connects to a pipe inside this process.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`connect`](Self::connect).
    pub async fn connect_memory(&self, pipe: &MemoryPipe) -> Result<Client, ConnectError> {
        let sizes = sizes(self.max_message_size, defaults::BUFFER_SIZE)?;
        let open = || memory::connect(&pipe.board, sizes.max_message_size);
        let channel = self.retry("the memory pipe", open).await?;
        Ok(Client::new(channel, sizes.max_message_size))
    }
}

/// Memory carries messages of any length.
fn sizes(max_message_size: Option<usize>, buffer_size: usize) -> Result<Sizes, OutOfRange> {
    Sizes::new(max_message_size, buffer_size, "memory", usize::MAX)
}
