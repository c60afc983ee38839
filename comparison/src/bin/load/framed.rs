//! A byte stream with length-prefixed messages.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use pipe_server_cli::{
    exit::Failure,
    load::{Options, Receiver, Sender, Transport},
};
use tokio::time::sleep;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// Connections to one address.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    address: String,
}

impl Stream {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            address: options.pipe_name.to_path().display().to_string(),
        }
    }
}

#[cfg(unix)]
mod halves {
    use std::io;

    use tokio::net::{UnixStream, unix};

    pub(super) type Read = unix::OwnedReadHalf;
    pub(super) type Write = unix::OwnedWriteHalf;

    pub(super) async fn try_connect(address: &str) -> io::Result<(Read, Write)> {
        Ok(UnixStream::connect(address).await?.into_split())
    }

    /// The listening queue is full.
    pub(super) fn is_busy(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::WouldBlock
    }
}

#[cfg(windows)]
mod halves {
    use std::io;

    use tokio::{
        io::{ReadHalf, WriteHalf},
        net::windows::named_pipe::{ClientOptions, NamedPipeClient},
    };

    pub(super) type Read = ReadHalf<NamedPipeClient>;
    pub(super) type Write = WriteHalf<NamedPipeClient>;

    const ERROR_PIPE_BUSY: i32 = 231;

    pub(super) async fn try_connect(address: &str) -> io::Result<(Read, Write)> {
        Ok(tokio::io::split(ClientOptions::new().open(address)?))
    }

    pub(super) fn is_busy(error: &io::Error) -> bool {
        error.raw_os_error() == Some(ERROR_PIPE_BUSY)
    }
}

/// Waits while the server is busy, as pipe-bench does.
async fn connect(address: &str) -> io::Result<(halves::Read, halves::Write)> {
    loop {
        match halves::try_connect(address).await {
            Err(error) if halves::is_busy(&error) => sleep(Duration::from_millis(1)).await,
            connected => return connected,
        }
    }
}

pub(crate) struct Writer(FramedWrite<halves::Write, LengthDelimitedCodec>);

pub(crate) struct Reader(FramedRead<halves::Read, LengthDelimitedCodec>);

impl Transport for Stream {
    type Sender = Writer;
    type Receiver = Reader;

    const IO_DRIVER: bool = true;

    async fn connect(&self) -> Result<(Self::Sender, Self::Receiver), Failure> {
        let (reader, writer) = connect(&self.address)
            .await
            .map_err(|error| Failure::new(format!("can't connect to {}: {error}", self.address)))?;
        let codec = LengthDelimitedCodec::new();
        Ok((
            Writer(FramedWrite::new(writer, codec.clone())),
            Reader(FramedRead::new(reader, codec)),
        ))
    }

    fn address(&self) -> &str {
        &self.address
    }
}

impl Sender for Writer {
    async fn send(&mut self, message: Bytes) -> Result<(), String> {
        self.0.send(message).await.map_err(text)
    }
}

impl Receiver for Reader {
    async fn recv(&mut self) -> Result<Option<Bytes>, String> {
        match self.0.next().await {
            Some(Ok(message)) => Ok(Some(message.freeze())),
            Some(Err(error)) => Err(text(error)),
            None => Ok(None),
        }
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}
