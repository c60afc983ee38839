//! Tokio's stream socket with length-prefixed messages, the usual way to get messages from a stream.

use std::io;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixListener;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

pub(crate) fn serve(address: &str) -> io::Result<()> {
    crate::runtime()?.block_on(async {
        let listener = UnixListener::bind(address)?;
        crate::announce(address)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut framed = Framed::new(stream, LengthDelimitedCodec::new());
                while let Some(Ok(message)) = framed.next().await {
                    if framed.send(message.freeze()).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}
