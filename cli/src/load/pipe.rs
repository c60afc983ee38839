//! A message pipe as a transport.

#[cfg(windows)]
use pipe_server::os::windows::ClientOptionsExt as _;
use pipe_server::{Bytes, ClientOptions, ConnectError, PipeName, RecvHalf, SendHalf, defaults};

use super::{
    options::Options,
    transport::{Receiver, Sender, Transport},
};
use crate::exit::{Failure, chain, connect_failure};

/// Makes connections to one pipe.
#[derive(Clone, Debug)]
pub struct Pipe {
    name: PipeName,
    address: String,
    options: ClientOptions,
}

impl Pipe {
    pub fn new(options: &Options) -> Self {
        let mut client = ClientOptions::new()
            .connect_timeout(options.connect_timeout.0)
            .trust(options.trust.clone());
        if options.size > defaults::MAX_MESSAGE_SIZE {
            client = client.max_message_size(options.size);
        }
        #[cfg(windows)]
        {
            client = client.allow_remote(options.allow_remote);
        }
        Self {
            name: options.pipe_name.clone(),
            address: options.pipe_name.to_path().display().to_string(),
            options: client,
        }
    }
}

impl Transport for Pipe {
    type Sender = SendHalf;
    type Receiver = RecvHalf;

    const IO_DRIVER: bool = cfg!(unix);

    async fn connect(&self) -> Result<(SendHalf, RecvHalf), Failure> {
        match self.options.connect(&self.name).await {
            Ok(client) => {
                let (receiver, sender) = client.into_split();
                Ok((sender, receiver))
            }
            // No other option that can be out of range is set here.
            Err(ConnectError::Option { problem, .. }) => {
                Err(Failure::usage(format!("--size {problem}")))
            }
            Err(error) => Err(connect_failure(&error, &self.name)),
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
