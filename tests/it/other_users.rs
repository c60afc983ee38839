//! Linux: what another user can take, and what is left to the server's own.
//!
//! The clients of another user are on a thread of that user: Linux keeps a user per thread, and a
//! connection has the user of the thread that connects. This takes root.

use std::{
    fs,
    future::{Future, IntoFuture as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use pipe_server::{
    Access, Bytes, Client, ClientOptions, Connection, ListenerOptions, RecvError, SendError,
    Shutdown, defaults, serve, serve_connections,
};
use rustix::{
    process::{Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit},
    thread::set_thread_res_uid,
};
use tokio::{runtime::Builder, sync::oneshot};

use support::{DEADLINE, UniqueName, in_time, server::Server, unique_name};

const NOBODY: u32 = 65_534;
const SOMEBODY: u32 = 65_533;

/// Which server runs.
#[derive(Clone, Copy, Debug)]
enum Code {
    Requests,
    Connections,
}

/// An echo server for everyone.
fn start(code: Code, max_instances: Option<usize>) -> (Server, UniqueName) {
    let name = unique_name();
    let directory = Path::new(&name.text).parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let options = ListenerOptions::new()
        .access(Access::Everyone)
        .max_instances(max_instances);
    let listener = options.bind(&name.text).unwrap();
    let server = Server::run(|signal| match code {
        Code::Requests => serve(listener, |request: Bytes| async move { request })
            .with_graceful_shutdown(signal)
            .into_future(),
        Code::Connections => serve_connections(listener, echo)
            .with_graceful_shutdown(signal)
            .into_future(),
    });
    (server, name)
}

#[derive(Debug, thiserror::Error)]
enum EchoError {
    #[error("the echo is not heard")]
    Send(#[from] SendError),
    #[error("there is nothing to echo")]
    Recv(#[from] RecvError),
}

async fn echo(mut connection: Connection, _: Shutdown) -> Result<(), EchoError> {
    while let Some(message) = connection.recv().await? {
        connection.send(message).await?;
    }
    Ok(())
}

fn can_become_others() -> bool {
    let can = geteuid().is_root();
    if !can {
        eprintln!("left out: needs root");
    }
    can
}

/// Runs `clients` on a thread of the user `uid`.
fn run_as<T: Send + 'static, Running: Future<Output = T>>(
    uid: u32,
    clients: impl FnOnce() -> Running + Send + 'static,
) -> oneshot::Receiver<T> {
    let (result, ended) = oneshot::channel();
    thread::spawn(move || {
        let uid = Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        _ = result.send(runtime.block_on(clients()));
    });
    ended
}

/// Connects, and returns the client if it is served.
async fn try_call(pipe: &str) -> Option<Client> {
    let options = ClientOptions::new().connect_timeout(DEADLINE);
    let mut client = options.connect(pipe).await.unwrap();
    let reply = client.call("hello").await.ok()?;
    assert_eq!(reply, "hello");
    Some(client)
}

/// Connects `count` times as the user `uid`. Returns the number of clients that are served, which
/// stay until the sender is dropped.
async fn hold(uid: u32, name: &UniqueName, count: usize) -> (usize, oneshot::Sender<()>) {
    let pipe = name.text.clone();
    let (connected, served) = oneshot::channel();
    let (stay, leave) = oneshot::channel();
    run_as(uid, move || async move {
        let mut held = Vec::new();
        for _ in 0..count {
            held.extend(try_call(&pipe).await);
        }
        connected.send(held.len()).unwrap();
        _ = leave.await;
    });
    (served.await.unwrap(), stay)
}

#[tokio::test]
async fn another_user_holds_so_many_connections_and_no_more() {
    if !can_become_others() {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    for code in [Code::Requests, Code::Connections] {
        in_time(async {
            let (server, name) = start(code, None);
            let (served, held) = hold(NOBODY, &name, 400).await;
            assert_eq!(served, defaults::MAX_CONNECTIONS_PER_USER, "{code:?}");
            assert!(try_call(&name.text).await.is_some());
            drop(held);
            let summary = server.stop().await;
            assert_eq!(
                (summary.served, summary.stats.refused),
                (257, 144),
                "{code:?}"
            );
        })
        .await;
    }
}

#[tokio::test]
async fn other_users_leave_a_place_to_the_servers_own() {
    if !can_become_others() {
        return;
    }
    for code in [Code::Requests, Code::Connections] {
        in_time(async {
            let (_server, name) = start(code, Some(4));
            let (served, held) = hold(NOBODY, &name, 10).await;
            assert_eq!(served, 2, "{code:?}");
            let (served, _held) = hold(SOMEBODY, &name, 10).await;
            assert_eq!(served, 1, "{code:?}");
            assert!(try_call(&name.text).await.is_some(), "{code:?}");
            // The places of those that leave are free for others.
            drop(held);
            while hold(SOMEBODY, &name, 1).await.0 == 0 {}
        })
        .await;
    }
}

#[tokio::test]
async fn a_user_who_connects_again_and_again_keeps_nobody_waiting() {
    if !can_become_others() {
        return;
    }
    for code in [Code::Requests, Code::Connections] {
        in_time(async {
            let (_server, name) = start(code, Some(8));
            let done = Arc::new(AtomicBool::new(false));
            let (pipe, is_done) = (name.text.clone(), Arc::clone(&done));
            let flood = run_as(NOBODY, move || async move {
                let options = ClientOptions::new().connect_timeout(Duration::ZERO);
                let mut held = Vec::new();
                while !is_done.load(Ordering::Relaxed) {
                    held.extend(options.connect(&pipe).await);
                    if held.len() >= 40 {
                        held.clear();
                    }
                }
            });
            for _ in 0..15 {
                assert!(try_call(&name.text).await.is_some(), "{code:?}");
            }
            done.store(true, Ordering::Relaxed);
            flood.await.unwrap();
        })
        .await;
    }
}
