//! Clients that start their server, a process of this test binary.

use std::{
    env, fs,
    io::Write as _,
    ops::Range,
    path::PathBuf,
    process::{Command, exit},
    time::Duration,
};

use pipe_server::{
    Bytes, ClientOptions, ConnectError, PipeListener, SharedClientOptions, StartError, serve,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use support::{DEADLINE, UniqueName, in_time, unique_name};

const NAME: &str = "PIPE_SERVER_TEST_NAME";
const STARTS: &str = "PIPE_SERVER_TEST_STARTS";
const IDLE_MICROS: &str = "PIPE_SERVER_TEST_IDLE_MICROS";

/// An idle time in microseconds, in which a client that has started its server finds it.
const IDLE: &str = "100000";

/// An idle time in microseconds, in which many clients connect, however busy the machine is.
const LONG_IDLE: &str = "1000000";

/// The pause of a client in microseconds, so that it comes when its server expires.
const AROUND_IDLE: Range<u64> = 98_000..104_000;

#[test]
#[ignore = "the server that the tests below start"]
fn server() {
    let Ok(name) = env::var(NAME) else { return };
    let starts = fs::File::options()
        .append(true)
        .create(true)
        .open(env::var(STARTS).unwrap());
    starts.unwrap().write_all(b".").unwrap();
    let idle = match env::var(IDLE_MICROS).unwrap().as_str() {
        "fail" => {
            eprintln!("no configuration\nfound");
            exit(3);
        }
        "succeed" => return,
        idle => Duration::from_micros(idle.parse().unwrap()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let Ok(listener) = PipeListener::bind(name) else {
            exit(1);
        };
        let answer = |_: Bytes| async move { std::process::id().to_string() };
        let summary = serve(listener, answer).shutdown_when_idle(idle).await;
        assert_eq!(summary.aborted, 0);
    });
}

/// A name whose server is started on demand.
struct OnDemand {
    name: UniqueName,
    /// A file with one byte for each start.
    starts: PathBuf,
}

impl OnDemand {
    fn new() -> Self {
        let name = unique_name();
        // On Linux the name is the path of a directory of its own.
        let starts = env::temp_dir().join(format!("{}.starts", name.text));
        Self { name, starts }
    }

    /// `idle` is the server's idle time in microseconds, or what else the command does.
    fn options(&self, idle: &str) -> ClientOptions {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["on_demand::start_server::server", "--exact", "--ignored"])
            .arg("--nocapture")
            .env(NAME, &self.name.text)
            .env(STARTS, &self.starts)
            .env(IDLE_MICROS, idle);
        ClientOptions::new()
            .connect_timeout(DEADLINE)
            .start_server(command)
    }

    fn starts(&self) -> u64 {
        fs::metadata(&self.starts).map_or(0, |metadata| metadata.len())
    }

    /// Waits until the server that was started with this idle time has ended.
    async fn ended(&self, idle: &str) {
        let idle = Duration::from_micros(idle.parse().unwrap());
        let options = ClientOptions::new().connect_timeout(DEADLINE);
        until(async || {
            // Each look at it is a client.
            sleep(3 * idle).await;
            let connected = options.connect(&self.name.text).await;
            matches!(connected, Err(ConnectError::NotFound { .. }))
        })
        .await;
    }

    async fn start_error(&self, options: ClientOptions) -> StartError {
        match options.connect(&self.name.text).await.unwrap_err() {
            ConnectError::Start(error) => error,
            other => panic!("{other}"),
        }
    }
}

impl Drop for OnDemand {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.starts);
    }
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "it does not happen");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn clients_that_come_at_once_start_one_server() {
    in_time(async {
        let pipe = OnDemand::new();
        let mut clients = JoinSet::new();
        for _ in 0..16 {
            let (options, name) = (pipe.options(LONG_IDLE), pipe.name.text.clone());
            clients.spawn(async move {
                let mut client = options.connect(name).await.unwrap();
                let server = client.call("who").await.unwrap();
                (client, server)
            });
        }
        let mut served = clients.join_all().await;
        let (_, server) = served.pop().unwrap();
        assert!(served.iter().all(|(_, other)| *other == server));
        assert_eq!(pipe.starts(), 1);
        assert_ne!(server, std::process::id().to_string());
        drop(served);
        pipe.ended(LONG_IDLE).await;
    })
    .await;
}

#[tokio::test]
async fn a_shared_client_starts_its_server_again_after_it_has_ended() {
    in_time(async {
        let pipe = OnDemand::new();
        let options: SharedClientOptions = pipe.options(IDLE).shared();
        let client = options.connect_lazy(&pipe.name.text).unwrap();
        let first = client.call("who").await.unwrap();
        // It is idle only without this connection.
        client.shutdown().await;
        pipe.ended(IDLE).await;
        let client = options.connect(&pipe.name.text).await.unwrap();
        let second = client.call("who").await.unwrap();
        assert_ne!(first, second);
        assert_eq!(pipe.starts(), 2);
        drop(client);
        pipe.ended(IDLE).await;
    })
    .await;
}

#[tokio::test]
async fn a_command_that_fails_is_reported_with_its_stderr() {
    in_time(async {
        let pipe = OnDemand::new();
        let error = pipe.start_error(pipe.options("fail")).await;
        let StartError::Ended { status, stderr, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Some(3));
        assert!(stderr.contains("no configuration"), "{stderr}");
        let shown = error.to_string();
        assert!(shown.contains("no configuration / found"), "{shown}");
        assert_eq!(pipe.starts(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_command_that_serves_nothing_is_reported_after_the_connect_timeout() {
    in_time(async {
        let pipe = OnDemand::new();
        let options = pipe.options("succeed");
        let error = pipe
            .start_error(options.connect_timeout(Duration::from_secs(2)))
            .await;
        assert!(matches!(error, StartError::TimedOut { .. }), "{error}");
        // The command that was started last may outlive the client.
        until(async || pipe.starts() >= 1).await;
        assert!(pipe.starts() <= 2);
    })
    .await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_reported() {
    in_time(async {
        let pipe = OnDemand::new();
        let options = ClientOptions::new().start_server(Command::new("no-such-program"));
        let error = pipe.start_error(options).await;
        assert!(matches!(error, StartError::Spawn { .. }), "{error}");
        assert!(error.to_string().contains("no-such-program"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_may_not_wait_says_why_it_starts_no_server() {
    in_time(async {
        let pipe = OnDemand::new();
        let options = pipe.options(IDLE);
        let impatient = options.clone().connect_timeout(Duration::ZERO);
        let error = pipe.start_error(impatient.clone()).await;
        assert!(matches!(error, StartError::NoTime { .. }), "{error}");
        assert!(error.to_string().contains("connect_timeout"), "{error}");
        assert_eq!(pipe.starts(), 0);
        // It connects to one that runs.
        let first = options.connect(&pipe.name.text).await.unwrap();
        until(async || impatient.connect(&pipe.name.text).await.is_ok()).await;
        assert_eq!(pipe.starts(), 1);
        drop(first);
        pipe.ended(IDLE).await;
    })
    .await;
}

/// Clients of as many servers call each `calls` times. Each call is answered, by the server that was
/// there or by one that it started.
async fn call_at_expiry(clients: usize, calls: usize) {
    let pipes: Vec<_> = (0..clients).map(|_| OnDemand::new()).collect();
    let mut callers = JoinSet::new();
    for pipe in &pipes {
        let (options, name) = (pipe.options(IDLE), pipe.name.text.clone());
        callers.spawn(async move {
            for _ in 0..calls {
                let mut client = options.connect(&name).await.expect("a client is lost");
                client.call("who").await.expect("a call is lost");
                drop(client);
                // About the idle time.
                sleep(Duration::from_micros(fastrand::u64(AROUND_IDLE))).await;
            }
        });
    }
    callers.join_all().await;
    let starts: u64 = pipes.iter().map(OnDemand::starts).sum();
    println!("{} calls, {starts} starts", clients * calls);
    assert!(starts > clients as u64, "no server expires");
    for pipe in pipes {
        pipe.ended(IDLE).await;
    }
}

#[tokio::test]
async fn no_call_is_lost_when_the_server_expires() {
    in_time(call_at_expiry(4, 25)).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn none_of_10_000_calls_is_lost_when_the_server_expires() {
    call_at_expiry(20, 500).await;
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::{
        fs::{FlockOperation, flock},
        process::{Pid, getpgid},
    };

    use super::*;

    #[tokio::test]
    async fn the_command_is_not_started_while_another_server_holds_the_name() {
        in_time(async {
            let pipe = OnDemand::new();
            let lock = fs::File::create(format!("{}.lock", pipe.name.text)).unwrap();
            flock(&lock, FlockOperation::LockExclusive).unwrap();
            let options = pipe.options(IDLE);
            let connecting = options.connect(&pipe.name.text);
            let mut connecting = std::pin::pin!(connecting);
            let waited = tokio::time::timeout(Duration::from_millis(300), &mut connecting).await;
            waited.expect_err("it is held");
            assert_eq!(pipe.starts(), 0);
            drop(lock);
            drop(connecting.await.unwrap());
            assert_eq!(pipe.starts(), 1);
            pipe.ended(IDLE).await;
        })
        .await;
    }

    #[tokio::test]
    async fn the_server_has_its_own_process_group_and_leaves_no_zombie_and_no_lock() {
        in_time(async {
            let pipe = OnDemand::new();
            let options = pipe.options(IDLE);
            let mut client = options.connect(&pipe.name.text).await.unwrap();
            let server = client.call("who").await.unwrap();
            let server = String::from_utf8(server.to_vec()).unwrap();
            let id = Pid::from_raw(server.parse().unwrap());
            assert_eq!(getpgid(id).unwrap(), id.unwrap());
            assert!(!PathBuf::from(format!("{}.start.lock", pipe.name.text)).exists());
            drop(client);
            let process = PathBuf::from("/proc").join(server);
            until(async || !process.exists()).await;
        })
        .await;
    }
}
