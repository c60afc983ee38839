//! A request on a warm connection allocates nothing if the handler returns its input. This test has a
//! process of its own, since the allocator counts for all threads.

#![cfg(any(windows, target_os = "linux"))]
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    future::IntoFuture,
    io,
    sync::atomic::{AtomicUsize, Ordering},
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

const CALLS: usize = 1000;

/// How often a warm connection is tried until `CALLS` calls allocate nothing. On Windows a thread that takes completions
/// may be started at any time, up to their maximum.
const ATTEMPTS: usize = if cfg!(windows) { 9 } else { 1 };

/// The default engine.
#[cfg(target_os = "linux")]
const KIND: Kind = Kind::Seqpacket;
#[cfg(windows)]
const KIND: Kind = Kind::Overlapped;

/// The number of allocations in `CALLS` calls, by server and client together.
async fn count(client: &mut Client, request: &Bytes) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..CALLS {
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
    for concurrency in [1, 8] {
        let pipe = start_echo(concurrency);
        let mut client = pipe.connect().await;
        for size in [64, 1024, 4096, 65_536] {
            let request = Bytes::from(message(1, size));
            count(&mut client, &request).await;
            let mut allocations = vec![count(&mut client, &request).await];
            while allocations.len() < ATTEMPTS && *allocations.last().unwrap() > 0 {
                allocations.push(count(&mut client, &request).await);
            }
            assert_eq!(
                *allocations.last().unwrap(),
                0,
                "{CALLS} calls of {size} bytes, concurrency {concurrency}: {allocations:?}"
            );
        }
    }
}
