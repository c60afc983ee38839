//! Time limits of processes that are suspended for longer than them, as by Ctrl-Z or with a virtual
//! machine that is paused: what arrived meanwhile counts as in time.

use std::{
    env, fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipe_server::{Client, ClientOptions, PipeListener, RecvHalf};
use rustix::process::{Pid, Signal, kill_process};
use support::{UniqueName, in_time, unique_name};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::program::{Server, client, server};

/// The limit of each test, as the programs take it. Long enough that a busy machine gets from a
/// call to the suspension within it.
const LIMIT: &str = "1s";

/// Longer than the limit. A sleep, because it is the passing of time that is tested.
const SUSPENSION: Duration = Duration::from_millis(1200);

/// Which of them would notice an expired timer before what arrived is left to chance, so that there
/// are many.
const CLIENTS: usize = 20;

/// More than the sockets and the server hold, if nobody reads.
const LARGE_REQUESTS: usize = 40;

const LARGE: usize = 60_000;

/// Suspends a process, and returns once none of its threads runs.
async fn suspend(child: &Child) {
    kill_process(Pid::from_child(child), Signal::STOP).unwrap();
    while !is_suspended(child.id()) {
        sleep(Duration::from_millis(1)).await;
    }
}

fn is_suspended(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.into_iter().all(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat"));
        // The state follows the name, which is in parentheses. A thread may end meanwhile.
        stat.is_ok_and(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
    })
}

fn go_on(child: &Child) {
    kill_process(Pid::from_child(child), Signal::CONT).unwrap();
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> (UniqueName, Server) {
    let name = unique_name();
    let mut command = server(&name, arguments);
    // With more of them one may learn of what arrived while another one runs the timers.
    command.env("TOKIO_WORKER_THREADS", "1");
    let server = Server::spawn(command.stderr(Stdio::piped()));
    (name, server)
}

#[tokio::test]
async fn a_request_that_was_sent_to_a_suspended_server_is_in_time() {
    in_time(async {
        let (name, server) = start(&["--echo", "--idle-timeout", LIMIT]);
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(&name.text).await.unwrap());
        }
        for client in &mut clients {
            assert_eq!(client.call("before").await.unwrap(), "before");
        }
        suspend(&server.child).await;
        for client in &mut clients {
            client.send("meanwhile").await.unwrap();
        }
        sleep(SUSPENSION).await;
        go_on(&server.child);
        let mut replies = 0;
        for client in &mut clients {
            let reply = client.recv().await;
            replies +=
                usize::from(reply.is_ok_and(|reply| reply.is_some_and(|r| r == "meanwhile")));
        }
        assert_eq!(replies, CLIENTS, "{}", server.killed_log());
    })
    .await;
}

#[tokio::test]
async fn what_was_read_from_a_suspended_server_is_in_time() {
    in_time(async {
        let (name, server) = start(&["--echo", "--write-timeout", LIMIT]);
        let sent = Arc::new(AtomicUsize::new(0));
        let mut sending = JoinSet::new();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let client = Client::connect(&name.text).await.unwrap();
            let (receiver, mut sender) = client.into_split();
            clients.push((receiver, 0));
            let sent = Arc::clone(&sent);
            sending.spawn(async move {
                for number in 0..LARGE_REQUESTS {
                    // Fails if the server closes the connection, which the receiver sees.
                    if sender.send(vec![number as u8; LARGE]).await.is_err() {
                        break;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                sender
            });
        }
        until_no_more_is_sent(&sent).await;
        suspend(&server.child).await;
        for (receiver, replies) in &mut clients {
            *replies += receive_what_is_there(receiver).await;
            assert!((1..LARGE_REQUESTS).contains(replies), "{replies}");
        }
        let there: Vec<_> = clients.iter().map(|(_, replies)| *replies).collect();
        sleep(SUSPENSION).await;
        go_on(&server.child);
        let mut receiving = JoinSet::new();
        for (mut receiver, mut replies) in clients {
            receiving.spawn(async move {
                while replies < LARGE_REQUESTS && receive(&mut receiver, replies).await {
                    replies += 1;
                }
                replies == LARGE_REQUESTS
            });
        }
        let ends = receiving.join_all().await;
        let served = ends.into_iter().filter(|is_served| *is_served).count();
        assert_eq!(served, CLIENTS, "{there:?} {}", server.killed_log());
        sending.join_all().await;
    })
    .await;
}

/// The server takes no more once it has replies that it can't send.
async fn until_no_more_is_sent(sent: &AtomicUsize) {
    loop {
        let before = sent.load(Ordering::Relaxed);
        sleep(Duration::from_millis(50)).await;
        if before >= CLIENTS && before == sent.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Receives a reply. Returns whether there was one.
async fn receive(receiver: &mut RecvHalf, number: usize) -> bool {
    let Ok(Some(reply)) = receiver.recv().await else {
        return false;
    };
    assert!(reply == vec![number as u8; LARGE], "reply {number}");
    true
}

/// Makes room for the replies that wait in the server. Returns how many were received. Has to read
/// nearly all: Linux reports room once three quarters of the send buffer are free.
async fn receive_what_is_there(receiver: &mut RecvHalf) -> usize {
    let mut replies = 0;
    while let Ok(true) = timeout(Duration::from_millis(100), receive(receiver, replies)).await {
        replies += 1;
    }
    replies
}

/// Starts processes that send one request each, suspends each of them when its request is there,
/// replies to all, and lets them go on.
async fn serve_suspended(listener: &mut PipeListener, start: impl Fn() -> Child) -> Vec<Killed> {
    let mut suspended = Vec::new();
    for _ in 0..CLIENTS {
        let child = Killed(start());
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
        suspend(&child.0).await;
        suspended.push((child, connection));
    }
    for (_, connection) in &mut suspended {
        connection.send("answer").await.unwrap();
    }
    sleep(SUSPENSION).await;
    let mut clients = Vec::new();
    for (child, mut connection) in suspended {
        go_on(&child.0);
        // Until it closes, having received the reply or not.
        _ = connection.recv().await;
        clients.push(child);
    }
    clients
}

#[tokio::test]
async fn a_reply_that_was_sent_to_a_suspended_client_is_in_time() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let start = || {
            let mut command = client(&name, &["--timeout", LIMIT, "hello"]);
            command.stdin(Stdio::null()).stderr(Stdio::inherit());
            command.spawn().unwrap()
        };
        for mut client in serve_suspended(&mut listener, start).await {
            let (code, output) = ended(&mut client.0);
            assert_eq!((code, &*output), (Some(0), "answer\n"));
        }
    })
    .await;
}

/// The name of the pipe that the process of the test below calls.
const PIPE: &str = "PIPE_SERVER_TEST_SUSPENDED";

#[tokio::test]
async fn a_reply_that_was_sent_to_a_suspended_shared_client_is_in_time() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let start = || {
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args(["--ignored", "--exact", "suspended::shared_client_process"])
                .env(PIPE, &name.text)
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        for mut client in serve_suspended(&mut listener, start).await {
            let (code, output) = ended(&mut client.0);
            assert_eq!(code, Some(0), "{output}");
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "is only run by the other test"]
async fn shared_client_process() {
    let Ok(pipe) = env::var(PIPE) else { return };
    let options = ClientOptions::new().call_timeout(Duration::from_secs(1));
    let client = options.shared().connect_lazy(&pipe).unwrap();
    assert_eq!(client.call("hello").await.unwrap(), "answer");
}

fn ended(child: &mut Child) -> (Option<i32>, String) {
    let mut output = child.stdout.take().unwrap();
    crate::program::ended(child, &mut output)
}
