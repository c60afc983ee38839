//! nng's REP socket with contexts, after nng's demo of an asynchronous server: each context answers one request at a
//! time, and the contexts run concurrently.

use std::thread;

use nng::{
    Aio, AioResult, Context, Protocol, Socket,
    options::{Options as _, RecvMaxSize},
};

/// The same as in the demo.
const CONTEXTS: usize = 128;

pub(crate) fn serve(address: &str) -> Result<(), nng::Error> {
    let socket = Socket::new(Protocol::Rep0)?;
    // No limit; the default is 1 MiB.
    socket.set_opt::<RecvMaxSize>(0)?;
    let mut workers = Vec::with_capacity(CONTEXTS);
    for _ in 0..CONTEXTS {
        let context = Context::new(&socket)?;
        let answering = context.clone();
        let aio = Aio::new(move |aio, result| {
            _ = match result {
                AioResult::Recv(Ok(message)) => {
                    answering.send(&aio, message).map_err(|(_, error)| error)
                }
                _ => answering.recv(&aio),
            };
        })?;
        workers.push((context, aio));
    }
    socket.listen(&format!("ipc://{address}"))?;
    for (context, aio) in &workers {
        context.recv(aio)?;
    }
    _ = crate::announce(address);
    loop {
        thread::park();
    }
}
