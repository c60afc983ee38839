//! A request on a warm connection allocates nothing if the handler returns its input. This test has
//! a process of its own, since the allocator counts for all threads.

#![cfg(any(windows, target_os = "linux"))]
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    future::IntoFuture,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use pipe_server::{Bytes, Client, ListenerOptions, serve};

use support::{Kind, Pipe, log::Log, message};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most allocations in the whole test that no request causes: none on Linux. On Windows each
/// thread that takes completions, at most two for each processor and at least four, allocates when
/// it is started and when it takes its first packet, and either may happen at any time. The busiest
/// such thread made 16 allocations under Wine.
fn unrelated_allocations() -> usize {
    if cfg!(windows) {
        let processors = thread::available_parallelism().unwrap().get();
        32 * 2 * processors.max(2)
    } else {
        0
    }
}

/// The default engine.
#[cfg(target_os = "linux")]
const KIND: Kind = Kind::Seqpacket;
#[cfg(windows)]
const KIND: Kind = Kind::Overlapped;

/// The number of allocations in so many calls, by server and client together.
async fn count(client: &mut Client, calls: usize, request: &Bytes) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..calls {
        assert!(client.call(request.clone()).await.unwrap() == *request);
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// A server that echoes, with up to `concurrency` requests of one client at once.
fn start_echo(concurrency: usize) -> Pipe {
    let (listener, pipe) = KIND.bind(ListenerOptions::new());
    let echo = |request: Bytes| async move { Ok::<_, io::Error>(request) };
    tokio::spawn(serve(listener, echo).concurrency(concurrency).into_future());
    pipe
}

#[tokio::test]
async fn a_request_on_a_warm_connection_allocates_nothing() {
    // With a log at INFO, as most servers have.
    let _log = Log::start();
    let unrelated = unrelated_allocations();
    // One allocation for every second request would be too many.
    let calls = 1000.max(2 * unrelated);
    let mut allocations = 0;
    for concurrency in [1, 8] {
        let pipe = start_echo(concurrency);
        let mut client = pipe.connect().await;
        for size in [64, 1024, 4096, 65_536] {
            let request = Bytes::from(message(1, size));
            // The first calls fill the buffers.
            count(&mut client, calls, &request).await;
            allocations += count(&mut client, calls, &request).await;
            assert!(
                allocations <= unrelated,
                "{allocations} allocations, more than {unrelated}, after {calls} calls of {size} bytes with \
                 concurrency {concurrency}"
            );
        }
    }
}
