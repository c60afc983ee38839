//! The loop from Tokio's documentation (`NamedPipeServer::connect`), in message mode: the next instance is created
//! before the connected one is handed to its task.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::windows::named_pipe::{PipeMode, ServerOptions},
};

/// Would be the longest message if Tokio kept messages whole.
const BUFFER_SIZE: usize = 64 * 1024;

pub(crate) fn serve(name: &str) -> io::Result<()> {
    let address = format!(r"\\.\pipe\{name}");
    crate::runtime()?.block_on(async {
        let mut options = ServerOptions::new();
        options.pipe_mode(PipeMode::Message);
        let mut server = options.clone().first_pipe_instance(true).create(&address)?;
        crate::announce(&address)?;
        loop {
            server.connect().await?;
            let mut connected = server;
            server = options.create(&address)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; BUFFER_SIZE];
                while let Ok(length @ 1..) = connected.read(&mut buffer).await {
                    if connected.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}
