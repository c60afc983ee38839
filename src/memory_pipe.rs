//! A pipe inside this process, for tests.

use std::path::PathBuf;

use crate::{
    client::{Client, ClientOptions},
    defaults,
    engine::memory::{self, Switchboard},
    error::{BindError, ConnectError},
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
        let sizes = self.sizes(defaults::MAX_MESSAGE_SIZE);
        let (endpoint, board) = memory::bind(sizes);
        let name: PipeName = "memory".parse()?;
        let path = PathBuf::from("memory");
        let listener = self.listen(name, path, endpoint, sizes.max_message_size)?;
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
        let sizes = self.sizes(usize::MAX)?;
        let open = || memory::connect(&pipe.board, sizes.max_message_size);
        let channel = self.retry("the memory pipe", open).await?;
        Ok(Client::new(channel, sizes.max_message_size))
    }
}
