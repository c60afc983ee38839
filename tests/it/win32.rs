//! Interoperability with programs that do not use this library: plain clients, such as the
//! sample's, with our server, and a plain server with our client. They make blocking Windows calls.

use std::{future::IntoFuture, io, thread};

use pipe_server::{
    Bytes, CallError, ClientOptions, ConnectError, ListenerOptions, PipeName, RecvError, SendError,
    Trust,
    os::windows::{Engine, ListenerOptionsExt as _},
    serve,
};
use windows_sys::Win32::{
    Foundation::{ERROR_BROKEN_PIPE, GENERIC_READ, GENERIC_WRITE},
    Storage::FileSystem::PIPE_ACCESS_DUPLEX,
    System::Pipes::{PIPE_READMODE_MESSAGE, PIPE_TYPE_BYTE, PIPE_TYPE_MESSAGE},
};

use support::{
    message, unique_name,
    win32::{
        PlainPipe, call_as_the_sample_does, is, is_wine, open_as_the_sample_does, utf16, wait,
    },
};

const MIB: usize = 1 << 20;

/// Runs each function as one test per engine.
macro_rules! on_both_engines {
    ($($test:ident),* $(,)?) => {
        on_both_engines!(@engine overlapped, Overlapped, $($test),*);
        on_both_engines!(@engine tokio_pipe, Tokio, $($test),*);
    };
    (@engine $module:ident, $engine:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::Engine::$engine).await;
                }
            )*
        }
    };
}

on_both_engines! {
    the_samples_client_gets_its_reply,
    queued_replies_are_whole_and_in_order,
    messages_of_every_size_cross_in_both_directions_at_once,
    a_client_in_byte_read_mode_gets_the_bytes_of_its_replies,
    a_client_that_reads_as_python_does_gets_whole_replies,
    an_empty_write_ends_the_conversation_and_the_reply_can_still_be_read,
    a_client_that_closes_with_unread_replies_does_not_affect_the_next,
    with_one_instance_plain_clients_take_turns,
}

/// Starts an echo server and returns the pipe's address.
fn echo(engine: Engine, options: ListenerOptions) -> String {
    let name = unique_name();
    let listener = options.engine(engine).bind(&name.text).unwrap();
    let address = listener.path().to_str().unwrap().to_owned();
    let serving = serve(listener, |request: Bytes| async move {
        Ok::<_, io::Error>(request)
    });
    tokio::spawn(serving.into_future());
    address
}

/// Runs a blocking function on another thread.
async fn blocking<T: Send + 'static>(plain: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(plain).await.unwrap()
}

async fn the_samples_client_gets_its_reply(engine: Engine) {
    let address = echo(engine, ListenerOptions::new());
    let request = utf16("Default message from client.");
    let sent = request.clone();
    let reply = blocking(move || call_as_the_sample_does(&address, &sent)).await;
    assert_eq!(reply, request);
}

async fn queued_replies_are_whole_and_in_order(engine: Engine) {
    let longest = match engine {
        Engine::Tokio => 4095,
        _ => 16_384,
    };
    // Less in total than the pipe's buffer, so no write waits for a reader.
    let lengths = [1, 4095, 2, 511, 512, 513, 4094, 1, longest, 3, 1024, 4095];
    let address = echo(engine, ListenerOptions::new());
    blocking(move || {
        let pipe = open_as_the_sample_does(&address);
        for (number, length) in lengths.into_iter().enumerate() {
            pipe.write(&message(number, length)).unwrap();
        }
        for (number, length) in lengths.into_iter().enumerate() {
            let reply = pipe.read_message(700).unwrap();
            assert!(reply == message(number, length), "reply {number}");
        }
    })
    .await;
}

async fn messages_of_every_size_cross_in_both_directions_at_once(engine: Engine) {
    let (options, edges) = match engine {
        Engine::Tokio => (ListenerOptions::new(), &[512, 1024, 2048, 4094][..]),
        _ => (
            ListenerOptions::new().max_message_size(MIB + 1),
            &[512, 4096, 8192, 65_536, 200_000, MIB][..],
        ),
    };
    let lengths: Vec<usize> = edges
        .iter()
        .flat_map(|&edge| [edge, 1, edge - 1, edge + 1])
        .collect();
    let address = echo(engine, options);
    blocking(move || {
        let pipe = PlainPipe::open_for_two(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        pipe.set_message_mode().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (number, &length) in lengths.iter().enumerate() {
                    pipe.write(&message(number, length)).unwrap();
                }
            });
            for (number, &length) in lengths.iter().enumerate() {
                let reply = pipe.read_message(4096).unwrap();
                assert!(reply == message(number, length), "{length} bytes");
            }
        });
    })
    .await;
}

async fn a_client_in_byte_read_mode_gets_the_bytes_of_its_replies(engine: Engine) {
    let address = echo(engine, ListenerOptions::new());
    blocking(move || {
        let pipe = PlainPipe::open(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        let mut expected = Vec::new();
        for (number, length) in [1, 4095, 10, 600].into_iter().enumerate() {
            pipe.write(&message(number, length)).unwrap();
            expected.extend(message(number, length));
        }
        let mut received = Vec::new();
        let mut buffer = [0; 1000];
        while received.len() < expected.len() {
            let (length, more) = pipe.read(&mut buffer).unwrap();
            assert!(!more, "bytes have no boundaries");
            received.extend_from_slice(&buffer[..length]);
        }
        assert!(received == expected);
    })
    .await;
}

/// The calls of `multiprocessing.connection`: Lib/multiprocessing/connection.py, `PipeClient` and
/// `PipeConnection`.
async fn a_client_that_reads_as_python_does_gets_whole_replies(engine: Engine) {
    let address = echo(engine, ListenerOptions::new());
    blocking(move || {
        wait(&address, 1000).unwrap();
        let pipe = PlainPipe::open_for_two(&address, GENERIC_READ | GENERIC_WRITE).unwrap();
        pipe.set_message_mode().unwrap();
        for (number, length) in [1, 128, 129, 4095].into_iter().enumerate() {
            let request = message(number, length);
            pipe.write(&request).unwrap();
            let mut reply = vec![0; length];
            let (first, more) = pipe.read(&mut reply[..length.min(128)]).unwrap();
            assert_eq!(first, length.min(128));
            assert_eq!(more, length > 128);
            if more {
                assert_eq!(pipe.left_of_message().unwrap(), length - first);
                assert_eq!(
                    pipe.read(&mut reply[first..]).unwrap(),
                    (length - first, false)
                );
            }
            assert!(reply == request);
        }
    })
    .await;
}

async fn an_empty_write_ends_the_conversation_and_the_reply_can_still_be_read(engine: Engine) {
    let address = echo(engine, ListenerOptions::new());
    blocking(move || {
        let pipe = open_as_the_sample_does(&address);
        pipe.write(b"last request").unwrap();
        pipe.write(b"").unwrap();
        assert_eq!(pipe.read_message(64).unwrap(), b"last request");
        let error = pipe.read_message(64).unwrap_err();
        assert!(is(&error, ERROR_BROKEN_PIPE), "{error}");
    })
    .await;
}

async fn a_client_that_closes_with_unread_replies_does_not_affect_the_next(engine: Engine) {
    let address = echo(engine, ListenerOptions::new().max_instances(1));
    blocking(move || {
        for round in 0..10 {
            let closing = open_as_the_sample_does(&address);
            for number in 0..10 {
                closing.write(&message(number, 1000)).unwrap();
            }
            // The server may be answering any of them.
            drop(closing);
            let request = message(round, 100);
            assert_eq!(call_as_the_sample_does(&address, &request), request);
        }
    })
    .await;
}

async fn with_one_instance_plain_clients_take_turns(engine: Engine) {
    let address = echo(engine, ListenerOptions::new().max_instances(1));
    blocking(move || {
        thread::scope(|scope| {
            for client in 0..2 {
                let address = &address;
                scope.spawn(move || {
                    for turn in 0..20 {
                        let request = message(client * 20 + turn, 100);
                        assert_eq!(call_as_the_sample_does(address, &request), request);
                    }
                });
            }
        });
    })
    .await;
}

/// Our client with a plain server for one client.
mod our_client {
    use super::*;

    /// Starts a server that runs `script` with its one client, and returns its address.
    fn plain_server(
        script: impl FnOnce(&PlainPipe) -> io::Result<()> + Send + 'static,
    ) -> (String, thread::JoinHandle<io::Result<()>>) {
        let address = new_address();
        let pipe = create(&address, PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE);
        let serving = thread::spawn(move || {
            pipe.connect()?;
            script(&pipe)
        });
        (address, serving)
    }

    fn new_address() -> String {
        let name: PipeName = unique_name().text.parse().unwrap();
        name.to_path().to_str().unwrap().to_owned()
    }

    fn create(address: &str, pipe_mode: u32) -> PlainPipe {
        PlainPipe::create(address, PIPE_ACCESS_DUPLEX, pipe_mode).unwrap()
    }

    /// Wine gives no owner to a pipe that was created without a descriptor.
    fn options() -> ClientOptions {
        let trust = if is_wine() {
            Trust::Anyone
        } else {
            Trust::CurrentUser
        };
        ClientOptions::new().trust(trust)
    }

    #[tokio::test]
    async fn receives_echoes_of_every_size() {
        let (address, serving) = plain_server(|pipe| {
            loop {
                match pipe.read_message(4096) {
                    Ok(request) => pipe.write(&request)?,
                    Err(error) if is(&error, ERROR_BROKEN_PIPE) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        });
        let options = options().max_message_size(MIB);
        let mut client = options.connect(&address).await.unwrap();
        let lengths = [
            1,
            4095,
            4096,
            4097,
            65_535,
            65_536,
            65_537,
            200_000,
            MIB - 1,
            MIB,
        ];
        for (number, length) in lengths.into_iter().enumerate() {
            let request = message(number, length);
            let reply = client.call(request.clone()).await.unwrap();
            assert!(reply == request, "{length} bytes");
        }
        drop(client);
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn rejects_a_reply_over_its_limit() {
        for length in [11, 4096, 60_000] {
            let (address, serving) = plain_server(move |pipe| {
                pipe.read_message(64)?;
                pipe.write(&message(1, length))
            });
            let options = options().max_message_size(10);
            let mut client = options.connect(&address).await.unwrap();
            let error = client.call("how much?").await.unwrap_err();
            assert!(
                matches!(error, CallError::Recv(RecvError::TooLong { limit: 10, .. })),
                "{length} bytes: {error:?}"
            );
            serving.join().unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn notices_a_server_that_closes_instead_of_replying() {
        let (address, serving) = plain_server(|pipe| pipe.read_message(64).map(drop));
        let mut client = options().connect(&address).await.unwrap();
        let error = client.call("anybody?").await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn notices_a_server_that_disconnects_it() {
        let (address, serving) = plain_server(|pipe| {
            pipe.read_message(64)?;
            pipe.disconnect()
        });
        let mut client = options().connect(&address).await.unwrap();
        let error = client.call("anybody?").await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn notices_a_server_that_disconnects_it_in_the_middle_of_a_message() {
        let (address, serving) = plain_server(|pipe| {
            // The message exceeds the pipe's buffer, so its write is still pending.
            let (length, more) = pipe.read(&mut [0])?;
            assert_eq!((length, more), (1, true));
            pipe.disconnect()
        });
        let options = options().max_message_size(MIB);
        let mut client = options.connect(&address).await.unwrap();
        let error = client.send(message(1, MIB)).await.unwrap_err();
        assert!(matches!(error, SendError::Closed), "{error:?}");
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn treats_an_empty_reply_as_the_end() {
        let (address, serving) = plain_server(|pipe| {
            pipe.write(b"hello")?;
            pipe.write(b"")?;
            pipe.read_message(64).map(drop)
        });
        let mut client = options().connect(&address).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), "hello");
        assert!(client.recv().await.unwrap().is_none());
        client.send("done").await.unwrap();
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn refuses_a_byte_pipe() {
        let address = new_address();
        let _server = create(&address, PIPE_TYPE_BYTE);
        let error = options().connect(&address).await.unwrap_err();
        assert!(matches!(error, ConnectError::Io { .. }), "{error:?}");
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("byte pipe"), "{reason}");
    }
}
