//! Clients that send long requests and never read, until the server has reached
//! `--max-buffered-bytes`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{atomic::AtomicBool, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use pipe_server::{Client, ClientOptions, defaults};
use pipe_server_cli::open_files;
use support::DEADLINE;
use tokio::{
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

use crate::{converse, end, seconds};

/// The path of the pipe that [`attacker`] attacks.
const PIPE: &str = "ATTACK_PIPE";

/// How many connections [`attacker`] has.
const CONNECTIONS: &str = "ATTACK_CONNECTIONS";

const MIB: usize = 1024 * 1024;

/// How long after an attack its memory has been given back: the allocator takes ten seconds.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// An uid without an account, and the first of some.
const OTHER_USER: u32 = 54_321;

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// `pipe-server --echo`, and its log so far.
struct Server {
    process: Killed,
    log: JoinHandle<Vec<String>>,
    /// Receives a message for each log line of a client that is closed.
    closed: mpsc::Receiver<()>,
}

impl Server {
    fn start(pipe: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
        command.args(["--echo", "--access", "everyone", "--pipe-name", pipe]);
        command.args(arguments).env_remove("RUST_LOG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Killed(command.spawn().unwrap());
        let stdout = process.0.stdout.take().unwrap();
        BufReader::new(stdout)
            .read_line(&mut String::new())
            .unwrap();
        let (sender, closed) = mpsc::channel();
        let stderr: ChildStderr = process.0.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            lines
                .inspect(|line| {
                    if line.contains("buffered_bytes") && line.contains("closing the connection") {
                        _ = sender.send(());
                    }
                })
                .collect()
        });
        Self {
            process,
            log,
            closed,
        }
    }

    /// A line of `/proc/PID/status`, in MiB.
    fn memory(&self, field: &str) -> usize {
        let path = format!("/proc/{}/status", self.process.0.id());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.unwrap().trim_start_matches(':').trim();
        kib.trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    }
}

/// Starts a process of `user`, of this user if it is 0, that floods `pipe`.
fn flood(pipe: &str, connections: usize, user: u32) -> Killed {
    let mut command = Command::new(env::current_exe().unwrap());
    let test = "buffered_bytes::attacker";
    command.args(["--exact", test, "--ignored", "--test-threads=1"]);
    command
        .env(PIPE, pipe)
        .env(CONNECTIONS, connections.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if user > 0 {
        command.uid(user);
    }
    Killed(command.spawn().unwrap())
}

/// The lengths of the requests: the longest, and one of which the server receives 16 in one call.
const LENGTHS: [usize; 2] = [defaults::MAX_MESSAGE_SIZE, 13_000];

/// The process that [`flood`] starts. Each of its connections sends requests and reads nothing; one
/// that the server closes is replaced.
#[test]
#[ignore = "attacks the pipe that another test serves: does nothing by itself"]
fn attacker() {
    let Ok(pipe) = env::var(PIPE) else {
        return;
    };
    let connections: usize = env::var(CONNECTIONS).unwrap().parse().unwrap();
    _ = open_files::raise();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for number in 1..connections {
            let request = vec![7; LENGTHS[number % LENGTHS.len()]];
            tokio::spawn(flood_one(pipe.clone(), request));
        }
        flood_one(pipe, vec![7; LENGTHS[0]]).await;
    });
}

async fn flood_one(pipe: String, request: Vec<u8>) {
    loop {
        if let Ok(mut client) = ClientOptions::new().connect(pipe.as_str()).await {
            while client.send(request.clone()).await.is_ok() {}
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// A directory that every user can enter.
fn public_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn connect(path: &Path) -> (Runtime, Client) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(path)).unwrap();
    (runtime, client)
}

#[test]
fn a_client_that_reads_is_served_and_one_that_does_not_is_closed_at_the_limit() {
    let directory = public_directory();
    let path = directory.path().join("flooded.pipe");
    let pipe = path.to_str().unwrap();
    let arguments = ["--max-buffered-bytes", "2MiB", "--write-timeout", "none"];
    let mut server = Server::start(pipe, &arguments);
    let (runtime, mut client) = connect(&path);
    let _attacker = flood(pipe, 20, 0);
    for _ in 0..3 {
        server.closed.recv_timeout(DEADLINE).unwrap();
        runtime.block_on(async {
            for number in 0..100 {
                let request = format!("{number:02000}");
                let reply = timeout(DEADLINE, client.call(request.clone()));
                assert_eq!(reply.await.expect("no reply").unwrap(), request);
            }
        });
    }
    end(&mut server.process.0);
    let log = server.log.join().unwrap().join("\n");
    assert!(
        log.contains("max_buffered_bytes is nearly reached"),
        "{log}"
    );
}

#[test]
#[ignore = "takes a minute, and its figures are for a reader: run it by name"]
fn the_bytes_held_are_bounded_and_delay_nobody() {
    _ = open_files::raise();
    println!(
        "| attack | replies | p99, us | worst, us | peak memory, MiB | 20 s after, MiB | log lines |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let nobody: &[(usize, u32)] = &[];
    let is_root = rustix::process::geteuid().is_root();
    let others: Vec<_> = (0..5).map(|user| (250, OTHER_USER + user)).collect();
    for (attack, floods) in [
        ("none", nobody),
        ("1,500 connections that never read", &[(750, 0), (750, 0)]),
        ("the same with 4,000", &[(2000, 0), (2000, 0)]),
        ("five other users with 250 each", &others),
    ] {
        if is_root || floods.iter().all(|&(_, user)| user == 0) {
            println!("| {attack} | {} |", under(floods));
        }
    }
}

fn under(floods: &[(usize, u32)]) -> String {
    let directory = public_directory();
    let path = directory.path().join("flooded.pipe");
    let pipe = path.to_str().unwrap();
    let mut server = Server::start(pipe, &[]);
    let (runtime, client) = connect(&path);
    let attackers: Vec<_> = floods
        .iter()
        .map(|&(connections, user)| flood(pipe, connections, user))
        .collect();
    let latencies = converse(&runtime, client, None, seconds(), &AtomicBool::new(false));
    let peak = server.memory("VmHWM");
    drop(attackers);
    thread::sleep(GIVEN_BACK);
    let left = server.memory("VmRSS");
    end(&mut server.process.0);
    let closed = server.closed.try_iter().count();
    let most = defaults::MAX_BUFFERED_BYTES / MIB;
    assert!(4 * peak <= 5 * most, "{peak} MiB of memory for {most}");
    if cfg!(feature = "jemalloc") {
        assert!(8 * left <= most, "{left} MiB of memory are left");
    }
    format!(
        "{} | {} | {} | {peak} | {left} | {closed}",
        latencies.0.len(),
        latencies.quantile(990),
        latencies.quantile(1000),
    )
}
