//! A pipe inside this process, for tests.
#![cfg(feature = "test-util")]

use std::{path::Path, sync::Arc};

use crate::{
    client::{Client, ClientOptions},
    defaults,
    engine::{
        Sizes,
        faulty::Faults,
        memory::{self, MemoryName, Wire},
    },
    error::{BindError, ConnectError},
    listener::{ListenerOptions, PipeListener},
};

/// A pipe inside this process, from [`ListenerOptions::bind_memory`].
#[derive(Clone, Debug)]
pub struct MemoryPipe {
    name: Arc<MemoryName>,
    /// The faults of connections made through this value.
    faults: Option<Faults>,
}

impl MemoryPipe {
    /// Connects with the default [`ClientOptions`].
    ///
    /// # Errors
    ///
    /// Same as [`ClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        ClientOptions::new().connect_memory(self).await
    }

    /// Returns the same pipe for clients whose connections have no [`Faults`]. Those of the
    /// listener still delay them.
    #[must_use]
    pub fn without_faults(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            faults: None,
        }
    }

    /// The number of instances: those that wait for a client, and those that serve one.
    ///
    /// Lets a test check that a connection has released its instance.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.name.instances()
    }
}

impl ListenerOptions {
    /// Serves a pipe inside this process, to test a handler without a pipe of the system.
    ///
    /// Ignores `access`, `engine` on Windows, and `socket_group` on Linux.
    ///
    /// # Errors
    ///
    /// [`BindError::Option`] for an option that is out of range.
    pub fn bind_memory(&self) -> Result<(PipeListener, MemoryPipe), BindError> {
        self.bind_memory_with(None)
    }

    /// Same as [`bind_memory`](Self::bind_memory), with `faults`.
    ///
    /// # Errors
    ///
    /// Same as [`bind_memory`](Self::bind_memory), and the error of [`Faults::fail_create`].
    pub fn bind_memory_with_faults(
        &self,
        faults: &Faults,
    ) -> Result<(PipeListener, MemoryPipe), BindError> {
        self.bind_memory_with(Some(faults.clone()))
    }

    fn bind_memory_with(
        &self,
        faults: Option<Faults>,
    ) -> Result<(PipeListener, MemoryPipe), BindError> {
        self.check()?;
        let (mut endpoint, name) = memory::bind(self.for_engine.sizes("memory", usize::MAX)?);
        if let Some(faults) = &faults {
            endpoint = faults.bound(endpoint);
        }
        let pipe = MemoryPipe { name, faults };
        let (name, path) = ("memory".parse()?, Path::new("memory"));
        let listener = self.listen(&name, path, self.admits_others(), |_| Ok(endpoint))?;
        if let Some(faults) = &pipe.faults {
            faults.start();
        }
        Ok((listener, pipe))
    }
}

impl ClientOptions {
    /// Connects to a pipe inside this process.
    ///
    /// # Errors
    ///
    /// Same as [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`connect`](Self::connect).
    pub async fn connect_memory(&self, pipe: &MemoryPipe) -> Result<Client, ConnectError> {
        let buffer_size = defaults::BUFFER_SIZE;
        let sizes = Sizes::new(self.max_message_size, buffer_size, "memory", usize::MAX)?;
        let wrap = |ends, wire: &Wire| match &pipe.faults {
            Some(faults) => faults.connected(ends, wire),
            None => ends,
        };
        let open = || memory::connect(&pipe.name, sizes.max_message_size, wrap);
        let channel = self.retry("the memory pipe", None, open).await?;
        Ok(Client::new(
            channel,
            sizes.max_message_size,
            self.call_timeout,
        ))
    }
}
