//! The limit of open files on Linux: what clients do to it costs nobody a connection.

use std::{
    fs,
    future::Future,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use pipe_server::{Client, ClientOptions};
use support::{DEADLINE, UniqueName, unique_name};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::timeout,
};

use crate::program::{Server, server};

/// The server, started by a shell that sets its limit of open files.
fn limited(limit: &str, server: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!(r#"{limit}; exec "$@""#), "sh"])
        .arg(server.get_program())
        .args(server.get_args())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    limited
}

/// Within the deadline.
fn wait_for<T>(runtime: &Runtime, event: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { timeout(DEADLINE, event).await })
        .expect("nothing happened for a long time")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn impatient() -> ClientOptions {
    ClientOptions::new().connect_timeout(Duration::ZERO)
}

/// Connects, sends and leaves until `done`.
async fn come_and_go(name: &UniqueName, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        if let Ok(mut client) = impatient().connect(&name.text).await {
            _ = client.send("hello").await;
        }
        // So that the deadline is looked at.
        yield_now().await;
    }
}

/// Connects as often as there is room, and stays.
async fn crowd(name: &UniqueName) -> Vec<Client> {
    // This one waits for those that have left.
    let mut crowd = vec![Client::connect(&name.text).await.unwrap()];
    for _ in 0..100 {
        crowd.extend(impatient().connect(&name.text).await);
    }
    crowd
}

async fn converse(client: &mut Client, calls: u32) {
    for number in 0..calls {
        let text = number.to_string();
        assert_eq!(client.call(text.clone()).await.unwrap(), text);
    }
}

#[test]
fn clients_in_any_number_cost_nobody_a_connection() {
    for (answer, calls) in [(&["--echo"][..], 2_000), (&["--exec", "cat"], 20)] {
        let name = unique_name();
        let server = Server::spawn(&mut limited("ulimit -n 64", &server(&name, answer)));
        let runtime = runtime();
        let mut client = wait_for(&runtime, Client::connect(&name.text)).unwrap();

        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| wait_for(&self::runtime(), come_and_go(&name, &done)));
            }
            // Also when a call fails.
            let _done = OnDrop(&done);
            wait_for(&runtime, converse(&mut client, calls));
        });
        let _crowd = wait_for(&runtime, crowd(&name));
        wait_for(&runtime, converse(&mut client, calls));

        let logged = server.killed_log();
        assert!(!logged.contains("Too many open files"), "{logged}");
        assert!(logged.contains("max_instances="), "{logged}");
    }
}

/// Sets a flag when it is dropped.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_server_raises_its_own_limit_and_not_that_of_its_commands() {
    let name = unique_name();
    let arguments = ["--max-instances", "5000", "--exec", "ulimit -S -n"];
    let limit = "ulimit -S -n 100 && ulimit -H -n 1000";
    let server = Server::spawn(&mut limited(limit, &server(&name, &arguments)));
    let line = server.log().wait_for("--max-instances 5000 is lowered");
    assert!(
        line.contains("WARN") && line.contains("open_files=1000"),
        "{line}"
    );

    let limits = fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["1000", "1000"]);

    let runtime = runtime();
    let mut client = wait_for(&runtime, Client::connect(&name.text)).unwrap();
    let reply = wait_for(&runtime, client.call("?")).unwrap();
    assert_eq!(reply, "100\n");
}

#[test]
fn a_limit_with_no_room_for_a_client_is_a_failure_that_says_what_to_do() {
    let name = unique_name();
    let arguments = ["--exec", "cat", "--exec-limit", "100"];
    let output = limited("ulimit -n 64", &server(&name, &arguments))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("ulimit -n") && said.contains("--exec-limit"),
        "{said}"
    );
}

#[test]
fn a_memory_limit_lowers_how_much_is_buffered() {
    let name = unique_name();
    let mut command = limited("ulimit -v 800000", &server(&name, &[]));
    let server = Server::spawn(&mut command);
    let line = server.log().wait_for("--max-buffered-bytes is a quarter");
    assert!(line.contains("bytes=204800000"), "{line}");
}
