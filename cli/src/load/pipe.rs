//! The message pipe as a transport.

use std::time::Duration;

use pipe_server::{Bytes, ClientOptions, ConnectError, PipeName, RecvHalf, SendHalf};

use super::{
    options::Options,
    transport::{Receiver, Sender, Transport},
};
use crate::exit::Failure;

/// The longest message that the library's client takes without being told, in bytes.
const DEFAULT_MAX_MESSAGE_SIZE: usize = 64 * 1024;

/// Connections to one pipe.
#[derive(Clone, Debug)]
pub struct Pipe {
    name: PipeName,
    connect_timeout: Duration,
    size: usize,
}

impl Pipe {
    pub fn new(options: &Options) -> Self {
        Self {
            name: options.pipe_name.clone(),
            connect_timeout: options.connect_timeout,
            size: options.size,
        }
    }
}

impl Transport for Pipe {
    type Sender = SendHalf;
    type Receiver = RecvHalf;

    const IO_DRIVER: bool = cfg!(unix);

    async fn connect(&self) -> Result<(SendHalf, RecvHalf), Failure> {
        let mut options = ClientOptions::new().connect_timeout(self.connect_timeout);
        if self.size > DEFAULT_MAX_MESSAGE_SIZE {
            options = options.max_message_size(self.size);
        }
        match options.connect(&self.name).await {
            Ok(client) => {
                let (receiver, sender) = client.into_split();
                Ok((sender, receiver))
            }
            // No other option that can be wrong is set here.
            Err(ConnectError::Option { problem, .. }) => {
                Err(Failure::usage(format!("--size {problem}")))
            }
            Err(error) => Err(Failure::new(error.to_string())),
        }
    }

    fn address(&self) -> &str {
        self.name.address()
    }
}

impl Sender for SendHalf {
    async fn send(&mut self, message: Bytes) -> Result<(), String> {
        Self::send(self, message)
            .await
            .map_err(|error| error.to_string())
    }
}

impl Receiver for RecvHalf {
    async fn recv(&mut self) -> Result<Option<Bytes>, String> {
        Self::recv(self).await.map_err(|error| error.to_string())
    }
}
