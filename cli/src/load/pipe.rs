//! The message pipe as a transport.

use pipe_server::{
    Bytes, ClientOptions, ConnectError, PipeName, RecvHalf, SendHalf, Trust, defaults,
};

use super::{
    options::Options,
    transport::{Receiver, Sender, Transport},
};
use crate::{
    exit::{Failure, chain, connect_failure},
    values::Wait,
};

/// Connections to one pipe.
#[derive(Clone, Debug)]
pub struct Pipe {
    name: PipeName,
    address: String,
    connect_timeout: Wait,
    trust: Trust,
    size: usize,
}

impl Pipe {
    pub fn new(options: &Options) -> Self {
        Self {
            name: options.pipe_name.clone(),
            address: options.pipe_name.to_path().display().to_string(),
            connect_timeout: options.connect_timeout,
            trust: options.trust.clone(),
            size: options.size,
        }
    }
}

impl Transport for Pipe {
    type Sender = SendHalf;
    type Receiver = RecvHalf;

    const IO_DRIVER: bool = cfg!(unix);

    async fn connect(&self) -> Result<(SendHalf, RecvHalf), Failure> {
        let mut options = ClientOptions::new()
            .connect_timeout(self.connect_timeout.0)
            .trust(self.trust.clone());
        if self.size > defaults::MAX_MESSAGE_SIZE {
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
            Err(error) => Err(connect_failure(&error)),
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}

impl Sender for SendHalf {
    async fn send(&mut self, message: Bytes) -> Result<(), String> {
        Self::send(self, message)
            .await
            .map_err(|error| chain(&error))
    }
}

impl Receiver for RecvHalf {
    async fn recv(&mut self) -> Result<Option<Bytes>, String> {
        Self::recv(self).await.map_err(|error| chain(&error))
    }
}
