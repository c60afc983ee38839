//! The cost of `serve` itself, on the memory engine, without system calls.
//!
//! ```sh
//! cargo bench --bench dispatch
//! ```

use std::{future::IntoFuture as _, io};

use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use pipe_server::{
    BoxError, Bytes, Client, ConnectionInfo, Handler, ListenerOptions, MemoryPipe, Peer,
    PipeListener, PipeName, Request, Serve, Stats, serve,
};
use tokio::runtime::{Builder, Runtime};

fn main() {
    divan::main();
}

/// How many requests are sent before the first reply is read.
const DEPTH: usize = 16;

/// One call and its reply.
#[divan::bench(args = [64, 4096], sample_size = 1000)]
fn round_trip(bencher: Bencher<'_, '_>, size: usize) {
    let server = Server::start();
    let mut client = server.connect();
    let request = Bytes::from(vec![7; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let reply = server.runtime.block_on(client.call(request.clone()));
        assert_eq!(reply.unwrap().len(), size);
    });
}

/// As `round_trip`, for pipelined requests.
#[divan::bench(args = [64, 4096], sample_size = 100)]
fn pipelined(bencher: Bencher<'_, '_>, size: usize) {
    let server = Server::start();
    let mut client = server.connect();
    let request = Bytes::from(vec![7; size]);
    bencher.counter(ItemsCount::new(DEPTH)).bench_local(|| {
        server.runtime.block_on(async {
            for _ in 0..DEPTH {
                client.send(request.clone()).await.unwrap();
            }
            for _ in 0..DEPTH {
                assert_eq!(client.recv().await.unwrap().unwrap().len(), size);
            }
        });
    });
}

/// A connection with one call.
#[divan::bench(sample_size = 100)]
fn connection(bencher: Bencher<'_, '_>) {
    let server = Server::start();
    bencher.bench_local(|| {
        let mut client = server.connect();
        server.runtime.block_on(client.call("hello")).unwrap();
    });
}

/// A connection that is refused: an error is counted, and its line is left out of the log.
#[divan::bench(sample_size = 100)]
fn refused_connection(bencher: Bencher<'_, '_>) {
    let refuse = |_: ConnectionInfo| async move { Err::<(), _>(BoxError::from("refused")) };
    let server = Server::start_with(|listener| serve(listener, echo).on_connect(refuse));
    bencher.bench_local(|| {
        let mut client = server.connect();
        assert!(server.runtime.block_on(client.recv()).unwrap().is_none());
    });
}

/// A handler, with what it takes and returns, without a server.
#[divan::bench(args = [64, 4096], sample_size = 1000)]
fn handler(bencher: Bencher<'_, '_>, size: usize) {
    let runtime = Builder::new_current_thread().build().unwrap();
    let echo = |request: String| async move { Ok::<_, io::Error>(Some(request)) };
    let request = Bytes::from(vec![b'a'; size]);
    let peer = Peer::current().unwrap();
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| Request::new(request.clone(), peer.clone()))
        .bench_local_values(|request| runtime.block_on(Handler::call(&echo, request)).unwrap());
}

#[divan::bench(args = ["mynamedpipe", "/run/myservice/pipe", r"\\.\pipe\mynamedpipe"])]
fn parse_name(name: &str) -> Result<PipeName, pipe_server::NameError> {
    divan::black_box(name).parse()
}

/// What a monitoring program reads.
#[divan::bench(sample_size = 100)]
fn snapshot(bencher: Bencher<'_, '_>) {
    let server = Server::start();
    bencher.bench_local(|| server.stats.snapshot());
}

async fn echo(request: Bytes) -> io::Result<Bytes> {
    Ok(request)
}

struct Server {
    runtime: Runtime,
    pipe: MemoryPipe,
    stats: Stats,
}

impl Server {
    fn start() -> Self {
        Self::start_with(|listener| serve(listener, echo))
    }

    fn start_with<H, T>(serve: impl FnOnce(PipeListener) -> Serve<H, T>) -> Self
    where
        H: Handler<T>,
        T: 'static,
    {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let entered = runtime.enter();
        let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let serving = serve(listener);
        let stats = serving.stats();
        tokio::spawn(serving.into_future());
        drop(entered);
        Self {
            runtime,
            pipe,
            stats,
        }
    }

    fn connect(&self) -> Client {
        self.runtime.block_on(self.pipe.connect()).unwrap()
    }
}
