//! The cost of `serve` itself per request: one call and its reply on the memory engine, without system calls.
//!
//! ```sh
//! cargo bench --bench dispatch
//! ```

use std::{future::IntoFuture as _, io};

use divan::{Bencher, counter::BytesCount};
use pipe_server::{Bytes, ClientOptions, ListenerOptions, serve};
use tokio::runtime::Builder;

fn main() {
    divan::main();
}

#[divan::bench(args = [64, 4096], sample_size = 1000)]
fn round_trip(bencher: Bencher<'_, '_>, size: usize) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let mut client = runtime.block_on(async {
        let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let echo = |request: Bytes| async move { Ok::<_, io::Error>(request) };
        tokio::spawn(serve(listener, echo).into_future());
        ClientOptions::new().connect_memory(&pipe).await.unwrap()
    });
    let request = Bytes::from(vec![7; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let reply = runtime.block_on(client.call(request.clone())).unwrap();
        assert_eq!(reply.len(), size);
    });
}
