//! What only this module can be asked: each operation at the moments that a listener never shows.

use std::{
    future::poll_fn,
    process,
    sync::{
        Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use windows_sys::Win32::Foundation::ERROR_BROKEN_PIPE;

use super::*;
use crate::access::Access;

/// An instance that nobody has called `ConnectNamedPipe` for, and its address.
fn instance() -> (Pipe, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let address = format!(r"\\.\pipe\pipe-server-overlapped-{}-{count}", process::id());
    let descriptor = SecurityDescriptor::new(&Access::CurrentUser, false).unwrap();
    let options = InstanceOptions {
        first: true,
        allow_remote: false,
        buffer_size: 4096,
    };
    let pipe = Pipe::create_instance(&address, &descriptor, options).unwrap();
    (pipe, address)
}

fn connected() -> (Pipe, Pipe) {
    let (server, address) = instance();
    server.start_connect().unwrap();
    let client = Pipe::open(&address, false).unwrap();
    (server, client)
}

async fn read(pipe: &Pipe, buffer: &mut BytesMut) -> io::Result<Read> {
    poll_fn(|cx| pipe.poll_read(cx, buffer)).await
}

async fn read_message(pipe: &Pipe) -> io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(4096);
    assert_eq!(read(pipe, &mut buffer).await?, Read::Whole);
    Ok(buffer.freeze())
}

fn broken(result: io::Result<impl std::fmt::Debug>) -> bool {
    result.unwrap_err().raw_os_error() == Some(ERROR_BROKEN_PIPE as i32)
}

/// Waits until the last operation has given its reference back.
fn wait_until_freed(operations: &Weak<Operations>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while operations.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the operations are never freed");
        thread::yield_now();
    }
}

/// A message that the pipe has no room for.
fn long_message() -> Bytes {
    Bytes::from(vec![7; 100_000])
}

#[tokio::test]
async fn a_client_may_be_there_before_connect_is_called() {
    let (server, address) = instance();
    let client = Pipe::open(&address, false).unwrap();
    client.start_write("early".into()).unwrap();
    server.start_connect().unwrap();
    poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
    assert_eq!(read_message(&server).await.unwrap(), "early");
}

#[tokio::test]
async fn what_a_client_wrote_that_left_before_connect_was_called_is_read() {
    let (server, address) = instance();
    let client = Pipe::open(&address, false).unwrap();
    client.start_write("gone already".into()).unwrap();
    drop(client);
    server.start_connect().unwrap();
    poll_fn(|cx| server.poll_connect(cx)).await.unwrap();
    assert_eq!(read_message(&server).await.unwrap(), "gone already");
    assert!(broken(read_message(&server).await));
}

#[tokio::test]
async fn a_message_longer_than_the_buffer_comes_in_two_parts() {
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
        assert_eq!(read(&server, &mut buffer).await.unwrap(), Read::Part);
        let rest = server.rest_of_message().unwrap();
        assert_eq!(buffer.len() + rest, 100_000);
        buffer.reserve(rest);
        assert_eq!(read(&server, &mut buffer).await.unwrap(), Read::Whole);
        assert!(buffer == long_message());
        poll_fn(|cx| client.poll_write(cx)).await.unwrap();
    }
}

#[test]
fn a_pipe_can_be_dropped_while_it_waits_for_its_client() {
    let (server, address) = instance();
    server.start_connect().unwrap();
    let operations = Arc::downgrade(&server.operations);
    drop(server);
    assert!(
        Pipe::open(&address, false).is_err(),
        "the name is still served"
    );
    wait_until_freed(&operations);
}

#[tokio::test]
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

#[tokio::test]
async fn a_pipe_can_be_dropped_while_it_writes() {
    let (server, client) = connected();
    let operations = Arc::downgrade(&server.operations);
    server.start_write("before".into()).unwrap();
    server.start_write(long_message()).unwrap();
    let polled = poll_fn(|cx| Poll::Ready(server.poll_write(cx))).await;
    assert!(polled.is_pending());
    drop(server);
    // The client reads nothing and keeps its end open, and still all is given back.
    wait_until_freed(&operations);
    assert_eq!(read_message(&client).await.unwrap(), "before");
    assert!(broken(read_message(&client).await));
}

#[tokio::test]
async fn a_write_ends_when_the_other_side_closes() {
    let (server, client) = connected();
    server.start_write(long_message()).unwrap();
    drop(client);
    let written = poll_fn(|cx| server.poll_write(cx)).await;
    assert!(written.is_err(), "{written:?}");
}

#[tokio::test]
async fn a_message_that_is_taken_back_half_read_is_not_mixed_with_another() {
    let (server, client) = connected();
    client.start_write(long_message()).unwrap();
    let mut buffer = BytesMut::with_capacity(4096);
    assert_eq!(read(&server, &mut buffer).await.unwrap(), Read::Part);
    drop(client);
    buffer.reserve(100_000);
    assert!(broken(read(&server, &mut buffer).await));
}
