//! The crate `interprocess`: byte streams, so each message is prefixed with its length.

use std::{
    io::{self, Read as _, Write as _},
    thread,
};

use futures_util::{SinkExt as _, StreamExt as _};
use interprocess::local_socket::{GenericNamespaced, ListenerOptions, Name, prelude::*};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

fn local_name(name: &str) -> io::Result<Name<'_>> {
    name.to_ns_name::<GenericNamespaced>()
}

/// One task per client, on Tokio.
pub(crate) fn serve_with_tokio(name: &str) -> io::Result<()> {
    use interprocess::local_socket::traits::tokio::Listener as _;

    crate::runtime()?.block_on(async {
        let listener = ListenerOptions::new()
            .name(local_name(name)?)
            .create_tokio()?;
        crate::announce(name)?;
        loop {
            let stream = listener.accept().await?;
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

/// One thread per client, with blocking calls.
pub(crate) fn serve_with_threads(name: &str) -> io::Result<()> {
    let listener = ListenerOptions::new()
        .name(local_name(name)?)
        .create_sync()?;
    crate::announce(name)?;
    loop {
        let mut stream = listener.accept()?;
        thread::spawn(move || -> io::Result<()> {
            let mut message = Vec::new();
            loop {
                let mut length = [0; 4];
                stream.read_exact(&mut length)?;
                // Length and content in one write.
                message.clear();
                message.extend_from_slice(&length);
                message.resize(4 + u32::from_be_bytes(length) as usize, 0);
                stream.read_exact(&mut message[4..])?;
                stream.write_all(&message)?;
            }
        });
    }
}
