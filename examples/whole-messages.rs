//! Which servers receive messages whole and alone?
//!
//! `cargo run --example whole-messages` sends the same messages to the plain loop from Tokio's
//! documentation and to this library, on each engine of the system, and prints what each server
//! received. Tokio's named pipes exist only on Windows; elsewhere the example shows only this
//! library.

use std::{
    error::Error,
    future::IntoFuture,
    io, mem, process,
    sync::{Arc, Mutex},
};

use pipe_server::{Bytes, Client, ClientOptions, ListenerOptions, SendError, Trust, serve};

/// The longest message below.
const MIB: usize = 1 << 20;

/// The longest message that every Linux carries with the default `net.core.wmem_max`.
#[cfg(not(windows))]
const LONGEST: usize = 200_000;
#[cfg(windows)]
const LONGEST: usize = MIB;

/// What is sent on one connection: the lengths of its messages, sent without waiting for replies.
const CONVERSATIONS: &[&[usize]] = &[
    &[100],
    &[4095],
    &[4096],
    &[4097],
    &[4096, 1],
    &[8192],
    &[65_536],
    &[MIB],
    &[100, 65_536],
    &[100, 65_537],
    &[100, MIB],
    &[4095, 4096, 4097, 8192, 100],
    &[8192, 4097, 4096, 4095, 100],
];

/// What a server received, one item for each message that it saw.
type Received = Arc<Mutex<Vec<Bytes>>>;

struct Server {
    title: &'static str,
    name: String,
    received: Received,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    if !cfg!(windows) {
        println!("Tokio's named pipes exist only on Windows: this run shows only this library.\n");
    }
    print(&compare().await?);
    Ok(())
}

/// Returns a row for each conversation, with what each server received, below the servers' titles.
async fn compare() -> Result<Vec<Vec<String>>, Box<dyn Error>> {
    let servers = servers()?;
    let mut table = vec![vec!["sent".to_owned()]];
    table[0].extend(servers.iter().map(|server| server.title.to_owned()));
    for lengths in CONVERSATIONS {
        let mut row = vec![list(lengths)];
        for server in &servers {
            row.push(converse(server, lengths).await?);
        }
        table.push(row);
    }
    Ok(table)
}

#[cfg(not(windows))]
fn servers() -> io::Result<Vec<Server>> {
    let options = ListenerOptions::new().max_message_size(LONGEST);
    Ok(vec![this_library("seqpacket", options)?])
}

#[cfg(windows)]
fn servers() -> io::Result<Vec<Server>> {
    use pipe_server::os::windows::{Engine, ListenerOptionsExt as _};

    let overlapped = ListenerOptions::new().max_message_size(LONGEST);
    let tokio = ListenerOptions::new().engine(Engine::Tokio);
    Ok(vec![
        plain::serve()?,
        this_library("overlapped", overlapped)?,
        this_library("tokio", tokio)?,
    ])
}

fn this_library(title: &'static str, options: ListenerOptions) -> io::Result<Server> {
    let name = format!("whole-messages-{title}-{}", process::id());
    let received = Received::default();
    let log = Arc::clone(&received);
    let listener = options.bind(&name)?;
    let serving = serve(listener, move |request: Bytes| {
        log.lock().unwrap().push(request.clone());
        async move { request }
    });
    tokio::spawn(serving.into_future());
    Ok(Server {
        title,
        name,
        received,
    })
}

/// The loop from the documentation of `tokio::net::windows::named_pipe::NamedPipeServer`. It echoes
/// what each read returned.
#[cfg(windows)]
mod plain {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::windows::named_pipe::{NamedPipeServer, PipeMode, ServerOptions},
    };

    use super::*;

    pub(super) fn serve() -> io::Result<Server> {
        let name = format!(r"\\.\pipe\whole-messages-plain-{}", process::id());
        let received = Received::default();
        let mut options = ServerOptions::new();
        options.pipe_mode(PipeMode::Message);
        let first = options.clone().first_pipe_instance(true).create(&name)?;
        tokio::spawn(accept(first, options, name.clone(), Arc::clone(&received)));
        Ok(Server {
            title: "plain loop",
            name,
            received,
        })
    }

    async fn accept(
        mut server: NamedPipeServer,
        options: ServerOptions,
        name: String,
        log: Received,
    ) -> io::Result<()> {
        loop {
            server.connect().await?;
            let client = mem::replace(&mut server, options.create(&name)?);
            tokio::spawn(echo(client, Arc::clone(&log)));
        }
    }

    async fn echo(mut client: NamedPipeServer, log: Received) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = client.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let message = &buffer[..length];
            log.lock().unwrap().push(Bytes::copy_from_slice(message));
            client.write_all(message).await?;
        }
    }
}

/// Sends messages of these lengths on a new connection and returns what the server received.
async fn converse(server: &Server, lengths: &[usize]) -> Result<String, Box<dyn Error>> {
    if let Some(length) = lengths.iter().find(|&&length| length > LONGEST) {
        return Ok(format!("{length} bytes are not for every Linux"));
    }
    let messages: Vec<_> = lengths.iter().enumerate().map(message).collect();
    // All servers are in this process. Under Wine, the pipe of the plain loop has no owner.
    let options = ClientOptions::new()
        .max_message_size(LONGEST)
        .trust(Trust::Anyone);
    let client: Client = options.connect(&server.name).await?;
    let (mut receiver, mut sender) = client.into_split();
    let sending = async {
        for message in &messages {
            sender.send(message.clone()).await?;
        }
        sender.finish().await
    };
    let receiving = async {
        while receiver.recv().await?.is_some() {}
        io::Result::Ok(())
    };
    let (sent, replies) = tokio::join!(sending, receiving);
    match sent {
        // The server has closed the connection: what it received before shows why.
        Ok(()) | Err(SendError::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    replies?;

    // A server that has closed its end, or knows that nothing more will come, has received
    // everything.
    let received = mem::take(&mut *server.received.lock().unwrap());
    if received == messages {
        return Ok("whole".to_owned());
    }
    let lengths: Vec<_> = received.iter().map(Bytes::len).collect();
    let total: usize = lengths.iter().sum();
    let refused = total < messages.iter().map(Bytes::len).sum();
    Ok(match (lengths.is_empty(), refused) {
        (true, _) => "refused".to_owned(),
        (false, true) => format!("{}, the next refused", list(&lengths)),
        (false, false) => list(&lengths),
    })
}

/// A message whose content differs from its neighbours'.
fn message((number, &length): (usize, &usize)) -> Bytes {
    let byte = |index: usize| (number * 31 + index * 7 + index / 256) as u8;
    (0..length).map(byte).collect()
}

/// `4096, 16 x 65536`: each length, with the number of times it came in a row.
fn list(lengths: &[usize]) -> String {
    let run = |run: &[usize]| match run.len() {
        1 => run[0].to_string(),
        times => format!("{times} x {}", run[0]),
    };
    let runs: Vec<_> = lengths.chunk_by(usize::eq).map(run).collect();
    runs.join(", ")
}

fn print(table: &[Vec<String>]) {
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..table[0].len()).map(width).collect();
    for row in table {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_library_receives_messages_whole_or_refuses_them() {
        let table = compare().await.unwrap();
        let (titles, rows) = table.split_first().unwrap();
        assert_eq!(rows.len(), CONVERSATIONS.len());
        let mut whole = 0;
        for row in rows {
            for (title, cell) in titles.iter().zip(row).skip(1) {
                match (title.as_str(), cell.as_str()) {
                    ("plain loop", _) => {}
                    (_, "whole") => whole += 1,
                    // The limits of Tokio's own I/O, and of Linux.
                    ("tokio", cell) => assert!(cell.ends_with("refused"), "{row:?}"),
                    (_, cell) => assert!(cell.ends_with("not for every Linux"), "{row:?}"),
                }
            }
        }
        assert!(whole >= 11, "{table:?}");
    }
}
