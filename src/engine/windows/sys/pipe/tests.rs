//! Tests of each operation in states that a listener never reaches.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::atomic::{AtomicU32, Ordering},
    task::{RawWaker, RawWakerVTable, Waker},
    time::{Duration, Instant},
};

use windows_sys::Win32::Foundation::{ERROR_BROKEN_PIPE, GENERIC_READ, GENERIC_WRITE};

use std::sync::Weak;

#[cfg(pipe_model)]
use super::super::{model, peer::client_of};
use super::*;
#[cfg(pipe_model)]
use crate::peer::UserId;

/// Runs each test on the system, or on the model with 300 seeds.
macro_rules! tests {
    ($($(#[$attribute:meta])* async fn $test:ident() $body:block)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $test() {
            #[cfg(not(pipe_model))]
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap()
                .block_on(async $body);
            #[cfg(pipe_model)]
            for seed in model::seeds(300) {
                model::run(model::Options::seeded(seed), || async $body);
            }
        }
    )*};
}

/// Lets the system's threads make progress.
fn let_system_run() {
    // Under Miri, the model has threads of its own.
    #[cfg(any(miri, not(pipe_model)))]
    std::thread::yield_now();
    #[cfg(all(pipe_model, not(miri)))]
    model::Model::step();
}

/// An instance without a `ConnectNamedPipe` call so far, and its address.
fn instance() -> (PipeEnd, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let address = format!(r"\\.\pipe\pipe-server-overlapped-{}-{count}", process::id());
    let descriptor = SecurityDescriptor::parse("D:P(A;;GA;;;WD)").unwrap();
    let options = InstanceOptions {
        first: true,
        allow_remote: false,
        buffer_size: 4096,
    };
    let pipe = PipeEnd::new(create_instance(&address, &descriptor, options).unwrap()).unwrap();
    (pipe, address)
}

fn connected() -> (PipeEnd, PipeEnd) {
    let (server, address) = instance();
    server.start_connect().unwrap();
    let client = PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
    (server, client)
}

async fn read(pipe: &PipeEnd, buffer: &mut BytesMut) -> io::Result<MessagePart> {
    poll_fn(|cx| pipe.poll_read(cx, buffer)).await
}

async fn read_message(pipe: &PipeEnd) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(4096);
    assert_eq!(read(pipe, &mut buffer).await?, MessagePart::Last);
    Ok(buffer.freeze())
}

fn broken(result: io::Result<impl std::fmt::Debug>) -> bool {
    result.unwrap_err().raw_os_error() == Some(ERROR_BROKEN_PIPE as i32)
}

/// Waits until the last operation of a dropped pipe has released its reference.
fn wait_until_freed(operations: &Weak<Operations>) {
    wait_for_references(operations, 0);
}

fn wait_for_references(operations: &Weak<Operations>, left: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while operations.strong_count() > left {
        assert!(Instant::now() < deadline, "a reference is never released");
        let_system_run();
    }
}

/// A message that exceeds the pipe's buffer.
fn long_message() -> Bytes {
    Bytes::from(vec![7; 100_000])
}

tests! {
    async fn a_client_can_connect_before_connect_is_called() {
        let (server, address) = instance();
        let client = PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        client.start_write("early".into()).unwrap();
        server.start_connect().unwrap();
        poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
        assert_eq!(read_message(&server).await.unwrap(), "early");
    }

    #[cfg(pipe_model)]
    async fn a_client_that_opens_before_connect_is_called_is_known_by_its_first_message() {
        let (server, address) = instance();
        let client = PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        server.start_connect().unwrap();
        poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
        assert!(client_of(&server).is_err(), "the model asks for a message");
        client.start_write("hello".into()).unwrap();
        assert_eq!(read_message(&server).await.unwrap(), "hello");
        let user = UserId::Sid(model::User::PLAIN.sid.to_owned());
        assert_eq!(*client_of(&server).unwrap().user(), user);
    }

    async fn a_message_of_a_client_that_closed_before_connect_was_called_is_read() {
        let (server, address) = instance();
        let client = PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        client.start_write("gone already".into()).unwrap();
        drop(client);
        server.start_connect().unwrap();
        poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
        assert_eq!(read_message(&server).await.unwrap(), "gone already");
        assert!(broken(read_message(&server).await));
    }

    async fn a_message_longer_than_the_buffer_comes_in_parts() {
        for waits_already in [true, false] {
            let (server, client) = connected();
            let mut buffer = BytesMut::with_capacity(4096);
            if waits_already {
                client.start_write(long_message()).unwrap();
            } else {
                let polled = poll_fn(|cx| Poll::Ready(server.poll_read(cx, &mut buffer))).await;
                assert!(polled.is_pending());
                client.start_write(long_message()).unwrap();
            }
            while read(&server, &mut buffer).await.unwrap() == MessagePart::More {
                assert_eq!(buffer.len(), buffer.capacity());
                buffer.reserve(30_000);
            }
            assert!(buffer == long_message());
            poll_fn(|cx| client.poll_write(cx)).await.unwrap();
        }
    }

    async fn a_message_that_fills_the_buffer_exactly_ends_before_the_next() {
        for waits_already in [true, false] {
            let (server, client) = connected();
            let mut buffer = BytesMut::with_capacity(1000);
            assert_eq!(buffer.capacity(), 1000);
            if !waits_already {
                let polled = poll_fn(|cx| Poll::Ready(server.poll_read(cx, &mut buffer))).await;
                assert!(polled.is_pending());
            }
            for message in [&[1; 1000][..], &[2; 10]] {
                client.start_write(Bytes::from_static(message)).unwrap();
                poll_fn(|cx| client.poll_write(cx)).await.unwrap();
            }
            assert_eq!(read(&server, &mut buffer).await.unwrap(), MessagePart::Last);
            assert_eq!(buffer, [1; 1000][..]);
            assert_eq!(read_message(&server).await.unwrap(), [2; 10][..]);
        }
    }

    async fn a_waker_that_panics_does_not_free_the_buffer_of_a_pending_read() {
        let (server, client) = connected();
        let mut buffer = BytesMut::with_capacity(4096);
        let waker = panicking_waker();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            server.poll_read(&mut Context::from_waker(&waker), &mut buffer)
        }));
        assert!(polled.is_err(), "the clone of the waker panics");
        client.start_write("whole".into()).unwrap();
        assert_eq!(read(&server, &mut buffer).await.unwrap(), MessagePart::Last);
        assert_eq!(buffer, "whole");
    }

    async fn a_pipe_can_be_dropped_while_it_waits_for_its_client() {
        let (server, address) = instance();
        server.start_connect().unwrap();
        let operations = Arc::downgrade(&server.operations);
        drop(server);
        assert!(
            PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).is_err(),
            "the name is still served"
        );
        wait_until_freed(&operations);
    }

    #[cfg(pipe_model)]
    async fn a_connect_that_completes_with_an_error_can_be_repeated() {
        let (server, address) = instance();
        let operations = Arc::downgrade(&server.operations);
        for _ in 0..3 {
            server.start_connect().unwrap();
            assert_eq!(model::Model::fail_connects(ERROR_BROKEN_PIPE), 1);
            assert!(broken(poll_fn(|cx| server.poll_connect(cx)).await));
            // The pipe's own is left.
            wait_for_references(&operations, 1);
        }
        server.start_connect().unwrap();
        let _client = PipeEnd::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
        drop(server);
        wait_until_freed(&operations);
    }

    #[cfg(pipe_model)]
    async fn a_pipe_can_be_dropped_while_its_connect_completes_with_an_error() {
        let (server, _) = instance();
        let operations = Arc::downgrade(&server.operations);
        server.start_connect().unwrap();
        assert_eq!(model::Model::fail_connects(ERROR_BROKEN_PIPE), 1);
        drop(server);
        wait_until_freed(&operations);
    }

    async fn a_pipe_can_be_dropped_while_it_reads() {
        let (server, client) = connected();
        let operations = Arc::downgrade(&server.operations);
        let mut buffer = BytesMut::with_capacity(4096);
        let polled = poll_fn(|cx| Poll::Ready(server.poll_read(cx, &mut buffer))).await;
        assert!(polled.is_pending());
        drop(server);
        wait_until_freed(&operations);
        assert!(broken(read_message(&client).await));
    }

    async fn a_pipe_can_be_dropped_while_it_writes() {
        let (server, client) = connected();
        let operations = Arc::downgrade(&server.operations);
        server.start_write("before".into()).unwrap();
        poll_fn(|cx| server.poll_write(cx)).await.unwrap();
        server.start_write(long_message()).unwrap();
        let polled = poll_fn(|cx| Poll::Ready(server.poll_write(cx))).await;
        assert!(polled.is_pending());
        drop(server);
        // Everything is freed although the client neither reads nor closes its end.
        wait_until_freed(&operations);
        assert_eq!(read_message(&client).await.unwrap(), "before");
        assert!(broken(read_message(&client).await));
    }

    /// Miri reports memory that is freed early. No `Weak` keeps it here.
    async fn the_memory_of_a_dropped_pipe_outlives_its_operations() {
        let (server, client) = connected();
        let mut buffer = BytesMut::with_capacity(4096);
        let polled = poll_fn(|cx| Poll::Ready(server.poll_read(cx, &mut buffer))).await;
        assert!(polled.is_pending());
        server.start_write(long_message()).unwrap();
        drop((server, client));
    }

    async fn a_write_ends_when_the_other_side_closes() {
        let (server, client) = connected();
        server.start_write(long_message()).unwrap();
        drop(client);
        let written = poll_fn(|cx| server.poll_write(cx)).await;
        assert!(written.is_err(), "{written:?}");
    }

    async fn the_rest_of_a_cancelled_message_reads_as_a_broken_pipe() {
        let (server, client) = connected();
        client.start_write(long_message()).unwrap();
        let mut buffer = BytesMut::with_capacity(4096);
        assert_eq!(read(&server, &mut buffer).await.unwrap(), MessagePart::More);
        drop(client);
        buffer.reserve(100_000);
        assert!(broken(read(&server, &mut buffer).await));
    }
}

/// A waker whose clone panics.
fn panicking_waker() -> Waker {
    const VTABLE: RawWakerVTable =
        RawWakerVTable::new(|_| panic!("as asked for"), |_| {}, |_| {}, |_| {});
    // SAFETY: nothing is done with the pointer.
    unsafe { Waker::from_raw(RawWaker::new(ptr::null(), &VTABLE)) }
}
