//! What a well-behaved client notices while four hostile ones do their worst, for
//! docs/reliability.md:
//!
//! ```sh
//! cargo test --release -p pipe-server-cli --test attacks -- --ignored --nocapture
//! ```
//!
//! It prints a table. Each row is a server of its own under one attack for `ATTACK_SECONDS`, 10 by
//! default. It fails when a reply is lost or wrong, or the server does not end in good order. How
//! fast the replies come is for the reader: the first row is the same without an attack.
//!
//! A second table is of servers with `--exec`, whose commands another user tries to keep for itself.
//! It needs root, and programs that user 65534 can run.
//!
//! With `--target x86_64-pc-windows-gnu` it does the same under Wine, with attacks that only
//! Windows has.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
#[cfg(target_os = "linux")]
use std::{fs, mem};
#[cfg(windows)]
use std::{
    fs::File,
    io::{Read as _, Write as _},
};

use pipe_server::{Client, ClientOptions};
use support::{DEADLINE, unique_name};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::timeout,
};

#[cfg(target_os = "linux")]
#[path = "attacks/buffered_bytes.rs"]
mod buffered_bytes;

/// How many hostile clients there are, each on a thread of its own.
const HOSTILE: usize = 4;

/// How many connections one of them holds, where the attack is to hold them.
const HELD: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Attack {
    None,
    TooLong,
    ConnectAndClose,
    NeverRead,
    NeverSend,
    TakeAll,
    Flood,
    #[cfg(windows)]
    HalfRequest,
    #[cfg(windows)]
    HalfReply,
    /// None, but the well-behaved client connects anew for each request.
    NoneAnew,
    /// By another user, which takes root.
    #[cfg(target_os = "linux")]
    OtherUser,
}

impl Attack {
    const ALL: &[Self] = &[
        Self::None,
        Self::TooLong,
        Self::ConnectAndClose,
        Self::NeverRead,
        Self::NeverSend,
        Self::TakeAll,
        Self::Flood,
        #[cfg(windows)]
        Self::HalfRequest,
        #[cfg(windows)]
        Self::HalfReply,
        Self::NoneAnew,
        #[cfg(target_os = "linux")]
        Self::OtherUser,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TooLong => "messages that are too long",
            Self::ConnectAndClose => "connect, send and close, over and over",
            Self::NeverRead => "send and never read",
            Self::NeverSend => "connect and never send",
            Self::TakeAll => "take every instance and try again, `--max-instances 50`",
            Self::Flood => "pipelined requests without a pause",
            #[cfg(windows)]
            Self::HalfRequest => "leave in the middle of a request",
            #[cfg(windows)]
            Self::HalfReply => "read half of a reply, in byte mode, and leave",
            Self::NoneAnew => "none, but the client connects anew for each request",
            #[cfg(target_os = "linux")]
            Self::OtherUser => {
                "the same, and another user with 200 connections, each made anew once refused, \
                 `--access everyone --max-instances 64`"
            }
        }
    }

    /// What the server is started with, beside its usual options.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::TakeAll => &["--max-instances", "50"],
            #[cfg(target_os = "linux")]
            Self::OtherUser => &["--access", "everyone", "--max-instances", "64"],
            _ => &[],
        }
    }

    /// Whether the well-behaved client connects anew for each request.
    fn connects_anew(self) -> bool {
        match self {
            Self::NoneAnew => true,
            #[cfg(target_os = "linux")]
            Self::OtherUser => true,
            _ => false,
        }
    }

    /// Makes this thread a hostile client's.
    fn enter_thread(self) {
        #[cfg(target_os = "linux")]
        if let Self::OtherUser = self {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
    }

    /// One round of it, by a client whose connections may end at any time.
    async fn run(self, pipe: &str, held: &mut Vec<Client>) {
        let longest = pipe_server::defaults::MAX_MESSAGE_SIZE;
        let options = ClientOptions::new()
            .connect_timeout(Duration::ZERO)
            .max_message_size(longest + 1);
        match self {
            Self::None | Self::NoneAnew => tokio::time::sleep(Duration::from_millis(10)).await,
            Self::TooLong => {
                if let Ok(mut client) = options.connect(pipe).await {
                    _ = client.send(vec![0; longest + 1]).await;
                }
            }
            Self::ConnectAndClose => {
                if let Ok(mut client) = options.connect(pipe).await {
                    _ = client.send("hello").await;
                }
            }
            Self::NeverRead | Self::NeverSend if held.len() >= HELD => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Self::NeverRead => {
                if let Ok(mut client) = options.connect(pipe).await {
                    let full = async { while client.send(vec![0; 1000]).await.is_ok() {} };
                    _ = timeout(Duration::from_millis(20), full).await;
                    held.push(client);
                }
            }
            Self::NeverSend | Self::TakeAll => held.extend(options.connect(pipe).await),
            #[cfg(target_os = "linux")]
            Self::OtherUser => {
                match held.len() < HELD / HOSTILE {
                    true => held.extend(options.connect(pipe).await),
                    false => tokio::time::sleep(Duration::from_millis(1)).await,
                }
                // Those that were refused are made anew.
                for mut client in mem::take(held) {
                    if timeout(Duration::ZERO, client.recv()).await.is_err() {
                        held.push(client);
                    }
                }
            }
            Self::Flood => {
                if let Ok(client) = options.connect(pipe).await {
                    let (mut receiver, mut sender) = client.into_split();
                    let sending = async {
                        for _ in 0..10_000 {
                            if sender.send(vec![0; 64]).await.is_err() {
                                break;
                            }
                        }
                        _ = sender.finish().await;
                    };
                    let receiving = async { while let Ok(Some(_)) = receiver.recv().await {} };
                    _ = timeout(Duration::from_secs(2), async {
                        tokio::join!(sending, receiving)
                    })
                    .await;
                }
            }
            #[cfg(windows)]
            Self::HalfRequest => {
                if let Ok(mut client) = options.connect(pipe).await {
                    // Nobody reads the replies, so in the end a request does not fit and is
                    // cancelled.
                    let full = async { while client.send(vec![0; longest]).await.is_ok() {} };
                    _ = timeout(Duration::from_millis(1), full).await;
                }
            }
            #[cfg(windows)]
            Self::HalfReply => {
                let path = format!(r"\\.\pipe\{pipe}");
                if let Ok(mut file) = File::options().read(true).write(true).open(path) {
                    _ = file.write_all(&[0; 64]);
                    _ = file.read_exact(&mut [0; 32]);
                }
            }
        }
    }
}

/// What the well-behaved client saw, in microseconds.
struct Latencies(Vec<u128>);

impl Latencies {
    /// The latency that so many of a thousand do not exceed.
    fn quantile(&self, permille: usize) -> u128 {
        self.0[(self.0.len() * permille / 1000).min(self.0.len() - 1)]
    }
}

#[test]
#[ignore = "takes a minute, and its figures are for a reader: run it by name"]
fn a_well_behaved_client_loses_nothing_beside_hostile_ones() {
    println!(
        "| attack | replies | p99, us | worst, us | peak memory, KiB | most descriptors | log lines |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for &attack in Attack::ALL {
        #[cfg(target_os = "linux")]
        if matches!(attack, Attack::OtherUser) && !rustix::process::geteuid().is_root() {
            continue;
        }
        let row = under(attack, seconds());
        println!("| {} | {row} |", attack.name());
    }
}

/// How long each attack lasts.
fn seconds() -> Duration {
    let seconds = env::var("ATTACK_SECONDS").map_or(10, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

fn under(attack: Attack, time: Duration) -> String {
    let name = unique_name();
    let pipe = &name.text;
    #[cfg(target_os = "linux")]
    {
        use std::{os::unix::fs::PermissionsExt as _, path::Path};

        let directory = Path::new(pipe).parent().unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut server = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
        .args(["--echo", "--pipe-name", pipe])
        .args(attack.arguments())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    let log = BufReader::new(server.stderr.take().unwrap());
    let logging = thread::spawn(move || log.lines().map_while(Result::ok).count());

    // Before the hostile ones, which may leave no instance to others.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(pipe)).unwrap();
    let done = AtomicBool::new(false);
    let (latencies, descriptors) = thread::scope(|scope| {
        for _ in 0..HOSTILE {
            scope.spawn(|| {
                attack.enter_thread();
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut held = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        attack.run(pipe, &mut held).await;
                        yield_now().await;
                    }
                });
            });
        }
        let counting = scope.spawn(|| most_descriptors(&server, &done));
        let anew = attack.connects_anew().then_some(&**pipe);
        let latencies = converse(&runtime, client, anew, time, &done);
        (latencies, counting.join().unwrap())
    });
    let memory = peak_memory(&server);
    end(&mut server);
    let lines = logging.join().unwrap();
    format!(
        "{} | {} | {} | {memory} | {descriptors} | {lines}",
        latencies.0.len(),
        latencies.quantile(990),
        latencies.quantile(1000),
    )
}

/// Calls and compares until the time is over, and sets `done`, also when it fails. Connects to
/// `anew` for each call, if it is given.
fn converse(
    runtime: &Runtime,
    mut client: Client,
    anew: Option<&str>,
    time: Duration,
    done: &AtomicBool,
) -> Latencies {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let _done = Done(done);
    let mut latencies = runtime.block_on(async {
        let mut latencies = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < time {
            let request = format!("{:064}", latencies.len());
            let sent = Instant::now();
            if let Some(pipe) = anew {
                client = Client::connect(pipe).await.unwrap();
            }
            let reply = timeout(DEADLINE, client.call(request.clone())).await;
            latencies.push(sent.elapsed().as_micros());
            assert_eq!(reply.expect("no reply").unwrap(), request);
        }
        latencies
    });
    latencies.sort_unstable();
    Latencies(latencies)
}

/// Ends it as an operator does. On Windows there is no signal for it.
fn end(server: &mut Child) {
    #[cfg(unix)]
    {
        let process = rustix::process::Pid::from_child(server);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        assert!(server.wait().unwrap().success());
    }
    #[cfg(windows)]
    {
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

/// In KiB.
#[cfg(target_os = "linux")]
fn peak_memory(server: &Child) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.unwrap().trim().trim_end_matches(" kB").to_owned()
}

#[cfg(windows)]
fn peak_memory(server: &Child) -> String {
    let bytes = support::process::peak_memory(server.id()).unwrap();
    (bytes / 1024).to_string()
}

#[cfg(target_os = "linux")]
fn most_descriptors(server: &Child, done: &AtomicBool) -> String {
    let mut most = 0;
    while !done.load(Ordering::Relaxed) {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap();
        most = most.max(descriptors.count());
        thread::sleep(Duration::from_millis(20));
    }
    most.to_string()
}

/// Wine 8 counts no handles of another process.
#[cfg(windows)]
fn most_descriptors(_: &Child, _: &AtomicBool) -> String {
    "-".to_owned()
}

#[cfg(target_os = "linux")]
mod commands {
    //! Attacks on the commands of `--exec`, by another user if the tests run as root.

    use std::{
        fs::{Permissions, set_permissions},
        os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
        path::Path,
    };

    use super::*;

    const NOBODY: u32 = 65_534;

    /// Tells the test that it is the hostile process: which attack, and on which pipe.
    const ROLE: &str = "PIPE_ATTACK_ROLE";

    /// Replies to each line, but never to `never`.
    const LINES: &str = r#"while read -r l; do [ "$l" = never ] && sleep 1000; echo "$l"; done"#;
    /// The same once.
    const REQUEST: &str = r#"read -r l; [ "$l" = never ] && sleep 1000; printf %s "$l""#;

    #[derive(Clone, Copy, Debug)]
    enum CommandAttack {
        None,
        Fill,
        NeverEnd,
        IdleWorkers,
        SlowWorkers,
    }

    impl CommandAttack {
        /// Each with the mode that it is tried in.
        const ALL: [(Self, &str); 6] = [
            (Self::None, "request"),
            (Self::Fill, "request"),
            (Self::NeverEnd, "request"),
            (Self::None, "lines"),
            (Self::IdleWorkers, "lines"),
            (Self::SlowWorkers, "lines"),
        ];

        fn name(self) -> &'static str {
            match self {
                Self::None => "none",
                Self::Fill => "250 connections with a request after the other",
                Self::NeverEnd => "250 connections with a request that never ends",
                Self::IdleWorkers => "250 connections that idle after one request",
                Self::SlowWorkers => "250 connections with one request a second",
            }
        }

        /// What one of the connections does, for as long as it lasts.
        async fn run(self, client: &mut Client) -> Option<()> {
            match self {
                Self::None => {}
                Self::Fill => while client.call("more").await.is_ok() {},
                Self::NeverEnd => drop(client.call("never").await),
                Self::IdleWorkers => {
                    client.call("first").await.ok()?;
                    client.recv().await.ok()?;
                }
                Self::SlowWorkers => loop {
                    client.call("next").await.ok()?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
            }
            Some(())
        }
    }

    /// Attacks until it is killed. Run by the other test as another user.
    #[tokio::test]
    #[ignore = "is only run by the other test"]
    async fn hostile_process() {
        let Ok(role) = env::var(ROLE) else { return };
        let (index, pipe) = role.split_once(' ').unwrap();
        let (attack, _) = CommandAttack::ALL[index.parse::<usize>().unwrap()];
        let mut attackers = tokio::task::JoinSet::new();
        for _ in 0..250 {
            let pipe = pipe.to_owned();
            attackers.spawn(async move {
                loop {
                    if let Ok(mut client) = Client::connect(&pipe).await {
                        attack.run(&mut client).await;
                    }
                    yield_now().await;
                }
            });
        }
        attackers.join_all().await;
    }

    /// Killed when dropped.
    struct Killed(Child);

    impl Killed {
        /// The hostile process, once it has had the time to take what it gets.
        fn hostile(attack: usize, pipe: &str) -> Self {
            let hostile = Command::new(env::current_exe().unwrap())
                .args(["--ignored", "--exact", "commands::hostile_process"])
                .env(ROLE, format!("{attack} {pipe}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .uid(NOBODY)
                .gid(NOBODY)
                .spawn();
            thread::sleep(Duration::from_secs(2));
            Self(hostile.unwrap())
        }
    }

    impl Drop for Killed {
        fn drop(&mut self) {
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }

    #[test]
    #[ignore = "takes a minute, and its figures are for a reader: run it by name"]
    fn a_user_gets_commands_whatever_another_one_does() {
        let seconds = env::var("ATTACK_SECONDS").map_or(10, |text| text.parse().unwrap());
        if !rustix::process::geteuid().is_root() {
            println!("left out: needs root, to run the hostile clients as another user");
            return;
        }
        println!("| attack | `--exec-mode` | replies | p99, us | worst, us |");
        println!("|---|---|---:|---:|---:|");
        for (index, (attack, mode)) in CommandAttack::ALL.into_iter().enumerate() {
            let row = under(index, mode, Duration::from_secs(seconds));
            println!("| {} | {mode} | {row} |", attack.name());
        }
    }

    fn under(index: usize, mode: &str, time: Duration) -> String {
        let name = unique_name();
        let directory = Path::new(&name.text).parent().unwrap();
        set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        let command = if mode == "lines" { LINES } else { REQUEST };
        let server = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
            .args(["--pipe-name", &name.text, "--access", "everyone"])
            .args(["--exec-mode", mode, "--exec", command])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Killed(server.unwrap());
        let mut stdout = BufReader::new(server.0.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        let _hostile = match CommandAttack::ALL[index].0 {
            CommandAttack::None => None,
            _ => Some(Killed::hostile(index, &name.text)),
        };

        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut latencies = runtime.block_on(async {
            let mut latencies = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < time {
                // Each time as a new client, which needs a command of its own.
                let sent = Instant::now();
                let mut client = Client::connect(&name.text).await.unwrap();
                let reply = timeout(2 * DEADLINE, client.call("hello")).await;
                latencies.push(sent.elapsed().as_micros());
                assert_eq!(reply.expect("no reply").unwrap(), "hello");
            }
            latencies
        });
        latencies.sort_unstable();
        let latencies = Latencies(latencies);
        end(&mut server.0);
        format!(
            "{} | {} | {}",
            latencies.0.len(),
            latencies.quantile(990),
            latencies.quantile(1000)
        )
    }
}
