//! `pipe-server --exec`: replies, and what ends a command and what it has started.

use std::{
    future::Future,
    process::{Child, Command, Stdio},
    time::Duration,
};

use pipe_server::{Client, Connection, PipeListener};
use pipe_server_cli::process_group::{ProcessGroup, shell};
use support::{UniqueName, unique_name};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use crate::program::{Server, replies, run_client, server, stderr};

#[cfg(unix)]
#[test]
fn exec_answers_with_what_the_command_prints() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", "tr a-z A-Z"]);
    assert_eq!(replies(&name, &["hello", "again"], ""), "HELLO\nAGAIN\n");
}

#[cfg(windows)]
#[test]
fn exec_answers_with_what_the_command_prints() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", "echo hello"]);
    assert!(replies(&name, &["x"], "").starts_with("hello"));
}

#[test]
fn exec_tells_the_command_who_asks_and_nothing_stale() {
    let command = match cfg!(windows) {
        true => "set PIPE_",
        false => "env | grep ^PIPE_",
    };
    let name = unique_name();
    let mut command = server(&name, &["--exec", command]);
    for variable in ["UID", "SID", "PID"] {
        command.env(format!("PIPE_PEER_{variable}"), "stale");
    }
    // These configure the server, and may be secrets.
    command.env("PIPE_SERVER_WRITE_TIMEOUT", "1h");
    command.env("PIPE_SERVER_TOKEN", "secret");
    let _server = Server::spawn(command.env("PIPE_CONNECTION_ID", "stale"));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let replies = [(); 2].map(|()| {
        let reply = runtime.block_on(async {
            let mut client = pipe_server::Client::connect(&name.text).await.unwrap();
            client.call("who am I?").await.unwrap()
        });
        String::from_utf8(reply.to_vec()).unwrap()
    });
    let peer = pipe_server::Peer::current().unwrap();
    let (variable, user) = match peer.user() {
        #[cfg(unix)]
        pipe_server::UserId::Uid(uid) => ("PIPE_PEER_UID", uid.to_string()),
        #[cfg(windows)]
        pipe_server::UserId::Sid(sid) => ("PIPE_PEER_SID", sid.clone()),
        other => panic!("{other}"),
    };
    for (id, reply) in (1..).zip(replies) {
        let mut lines: Vec<_> = reply.lines().map(str::trim_end).collect();
        lines.sort_unstable();
        let expected = [
            format!("PIPE_CONNECTION_ID={id}"),
            format!("PIPE_PEER_PID={}", std::process::id()),
            format!("{variable}={user}"),
        ];
        assert_eq!(lines, expected);
    }
}

#[test]
fn a_failing_command_is_reported_and_costs_its_client_the_connection() {
    let (failing, status) = match cfg!(windows) {
        true => ("echo complaint 1>&2 & exit 3", "exit code: 3"),
        false => ("echo complaint >&2; exit 3", "exit status: 3"),
    };
    let name = unique_name();
    let mut command = server(&name, &["--exec", failing]);
    let server = Server::spawn(command.stderr(Stdio::piped()));
    let output = run_client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(stderr(&output).contains("did not reply"), "{output:?}");
    let line = server.log().wait_for("complaint");
    assert!(line.contains(status), "{line}");
}

/// Far more than a loaded machine needs, far less than the commands would go on for.
const DEADLINE: Duration = Duration::from_secs(100);

/// A pipe that commands are clients of: it shows whether they run.
struct Presence {
    name: UniqueName,
    listener: PipeListener,
    runtime: Runtime,
}

impl Presence {
    fn new() -> Self {
        let name = unique_name();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            PipeListener::bind(&name.text).unwrap()
        };
        Self {
            name,
            listener,
            runtime,
        }
    }

    /// A command of the shell that sends the messages to this pipe, each when the one before was
    /// replied to, and waits for the last reply for as long as this exists.
    fn process(&self, messages: &str) -> String {
        // Built on Linux for Windows it is a path of Linux, which cmd does not understand.
        let program = std::path::absolute(env!("CARGO_BIN_EXE_pipe-client")).unwrap();
        format!(
            r#""{}" --pipe-name "{}" {messages}"#,
            program.display(),
            self.name.text
        )
    }

    /// A command with two processes that never end: one in the background, one that the shell
    /// waits for.
    fn endless_family(&self) -> String {
        in_background(&self.process("child")) + &self.process("child")
    }

    fn accept_family(&mut self) -> [Connection; 2] {
        [(); 2].map(|()| {
            let mut process = self.accept();
            assert_eq!(self.hear(&mut process).as_deref(), Some("child"));
            process
        })
    }

    fn assert_gone(&self, family: &mut [Connection; 2]) {
        for process in family {
            assert_eq!(self.hear(process), None);
        }
    }

    /// The next process to come.
    fn accept(&mut self) -> Connection {
        Self::wait_for(&self.runtime, self.listener.accept()).unwrap()
    }

    /// What a process says next; nothing if it is over.
    fn hear(&self, process: &mut Connection) -> Option<String> {
        let message = Self::wait_for(&self.runtime, process.recv());
        // A killed client may be an error or the end, depending on the system.
        let message = message.ok().flatten()?;
        Some(String::from_utf8_lossy(&message).into_owned())
    }

    fn answer(&self, process: &mut Connection) {
        Self::wait_for(&self.runtime, process.send("go on")).unwrap();
    }

    fn assert_nobody_comes(&mut self) {
        let accepting = async { timeout(Duration::ZERO, self.listener.accept()).await };
        let accepted = self.runtime.block_on(accepting);
        assert!(accepted.is_err(), "one more command runs: {accepted:?}");
    }

    fn wait_for<T>(runtime: &Runtime, event: impl Future<Output = T>) -> T {
        runtime
            .block_on(async { timeout(DEADLINE, event).await })
            .expect("nothing happened for a long time")
    }
}

fn in_background(command: &str) -> String {
    match cfg!(windows) {
        true => format!(r#"start "" /b {command} & "#),
        false => format!("{command} & "),
    }
}

/// A server that runs such a command, and the client that waits for its reply.
struct Endless {
    presence: Presence,
    family: [Connection; 2],
    #[cfg_attr(
        windows,
        allow(
            dead_code,
            reason = "read by the tests with signals; kept running here"
        )
    )]
    server: Server,
    client: Child,
}

impl Endless {
    fn start(arguments: &[&str]) -> Self {
        let mut presence = Presence::new();
        let name = unique_name();
        let command = presence.endless_family();
        let server = Server::start(&name, &[arguments, &["--exec", &command]].concat());
        let client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .args(["--pipe-name", &name.text, "hello"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let family = presence.accept_family();
        Self {
            presence,
            family,
            server,
            client,
        }
    }

    fn assert_killed(&mut self) {
        self.presence.assert_gone(&mut self.family);
    }
}

#[test]
fn a_command_is_killed_with_its_children_when_its_time_is_over() {
    // They must have started by then, which takes a while under Wine.
    let time = if cfg!(windows) { "10s" } else { "2s" };
    let mut endless = Endless::start(&["--handler-timeout", time]);
    endless.assert_killed();
    assert_eq!(endless.client.wait().unwrap().code(), Some(6));
}

#[test]
fn a_command_is_killed_with_its_children_when_its_client_is_gone() {
    let mut endless = Endless::start(&[]);
    endless.client.kill().unwrap();
    endless.assert_killed();
    endless.client.wait().unwrap();
}

#[cfg(unix)]
#[test]
fn a_command_is_killed_with_its_children_when_the_drain_time_is_over() {
    use rustix::process::Signal;

    let mut endless = Endless::start(&["--drain-timeout", "100ms"]);
    endless.server.signal(Signal::TERM);
    endless.assert_killed();
    assert_eq!(endless.server.child.wait().unwrap().code(), Some(0));
    assert_eq!(endless.client.wait().unwrap().code(), Some(6));
}

#[cfg(target_os = "linux")]
#[test]
fn a_second_signal_ends_the_server_and_its_commands_at_once() {
    use crate::program::ending_signals;

    let [terminate, interrupt] = ending_signals()[..] else {
        return;
    };
    let mut endless = Endless::start(&["--drain-timeout", "1h"]);
    // SIGINT and SIGTERM: two of the same may become one on their way.
    endless.server.signal(interrupt);
    endless.server.signal(terminate);
    endless.assert_killed();
    assert_eq!(endless.server.child.wait().unwrap().code(), Some(130));
    assert_eq!(endless.client.wait().unwrap().code(), Some(6));
}

/// A terminal that is closed may send it twice.
#[cfg(unix)]
#[test]
fn a_second_sighup_does_not_cut_the_drain_short() {
    use rustix::process::Signal;

    let mut presence = Presence::new();
    let command = saying_its_request(&presence);
    let name = unique_name();
    let server = server(&name, &["--exec", &command]);
    // The tests themselves may run under nohup.
    let mut start = Command::new("env");
    start
        .arg("--default-signal=HUP")
        .arg(server.get_program())
        .args(server.get_args())
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut server = Server::spawn(&mut start);
    let client = requesting(&name, "request");
    let mut running = presence.accept();
    assert_eq!(presence.hear(&mut running).as_deref(), Some("request"));

    server.signal(Signal::HUP);
    server.log().wait_for("stopping");
    server.signal(Signal::HUP);
    presence.answer(&mut running);
    let output = client.wait_with_output().unwrap();
    let replied = String::from_utf8_lossy(&output.stdout);
    assert!(replied.starts_with("go on"), "{output:?}");
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn a_command_is_killed_with_its_children_when_the_runtime_ends() {
    let mut presence = Presence::new();
    let command = presence.endless_family();
    let runtime = Runtime::new().unwrap();
    runtime.spawn(async move { ProcessGroup::start(shell(&command)).unwrap().wait().await });
    let mut family = presence.accept_family();
    drop(runtime);
    presence.assert_gone(&mut family);
}

#[test]
fn what_a_command_leaves_running_goes_on() {
    let mut presence = Presence::new();
    let command = in_background(&presence.process("left behind")) + "echo done";
    let pipes = Presence::wait_for(&presence.runtime, async {
        let mut group = ProcessGroup::start(shell(&command)).unwrap();
        let pipes = group.take_pipes();
        assert!(group.wait().await.unwrap().success());
        pipes
    });
    let mut process = presence.accept();
    assert_eq!(presence.hear(&mut process).as_deref(), Some("left"));
    presence.answer(&mut process);
    assert_eq!(presence.hear(&mut process).as_deref(), Some("behind"));
    drop(pipes);
}

/// On Windows it holds the command's stdout, whatever its own is, and the reply would wait for it.
#[cfg(unix)]
#[test]
fn a_reply_does_not_wait_for_what_does_not_print() {
    let mut presence = Presence::new();
    let silent = format!("{} >/dev/null 2>&1", presence.process("left"));
    let name = unique_name();
    let command = in_background(&silent) + "echo done";
    let _server = Server::start(&name, &["--exec", &command]);
    assert_eq!(replies(&name, &["hello"], ""), "done\n\n");
    let mut process = presence.accept();
    assert_eq!(presence.hear(&mut process).as_deref(), Some("left"));
}

/// A command that says its request to `presence` and then waits for the reply.
fn saying_its_request(presence: &Presence) -> String {
    presence.process("").trim_end().to_owned()
}

/// A client that waits for the reply to one request.
fn requesting(name: &UniqueName, request: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text, request])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn further_requests_wait_for_the_exec_limit_and_are_answered_in_turn() {
    let mut presence = Presence::new();
    let command = saying_its_request(&presence);
    let name = unique_name();
    let arguments = [
        "-v",
        "--max-instances",
        "3",
        "--exec-limit",
        "1",
        "--exec",
        &command,
    ];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));

    let first = requesting(&name, "first");
    let mut running = presence.accept();
    assert_eq!(presence.hear(&mut running).as_deref(), Some("first"));
    let mut gone = requesting(&name, "gone");
    server.log().wait_for("--exec-limit");
    let second = requesting(&name, "second");
    server.log().wait_for("--exec-limit");
    gone.kill().unwrap();
    gone.wait().unwrap();
    // The server has room for this one once it has done with the one before.
    let third = requesting(&name, "third");
    server.log().wait_for("--exec-limit");

    for (number, client, next) in [
        ("first", first, Some("second")),
        ("second", second, Some("third")),
        ("third", third, None),
    ] {
        presence.assert_nobody_comes();
        presence.answer(&mut running);
        let output = client.wait_with_output().unwrap();
        let replied = String::from_utf8_lossy(&output.stdout);
        assert!(replied.starts_with("go on"), "{number}: {replied}");
        if let Some(next) = next {
            running = presence.accept();
            assert_eq!(presence.hear(&mut running).as_deref(), Some(next));
        }
    }
}

#[test]
fn as_many_commands_of_one_client_run_as_concurrency_allows() {
    let mut presence = Presence::new();
    let command = saying_its_request(&presence);
    let name = unique_name();
    let arguments = [
        "--concurrency",
        "2",
        "--exec-limit",
        "9",
        "--exec",
        &command,
    ];
    let _server = Server::start(&name, &arguments);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = Presence::wait_for(&runtime, Client::connect(&name.text)).unwrap();
    for request in ["1", "2", "3"] {
        Presence::wait_for(&runtime, client.send(request)).unwrap();
    }
    // They start at the same time, so either may come first.
    let mut running = [(); 2].map(|()| presence.accept());
    let mut requests = [0, 1].map(|index| presence.hear(&mut running[index]).unwrap());
    if requests[0] != "1" {
        requests.swap(0, 1);
        running.swap(0, 1);
    }
    assert_eq!(requests, ["1", "2"]);
    presence.assert_nobody_comes();
    presence.answer(&mut running[1]);
    presence.answer(&mut running[0]);
    let mut last = presence.accept();
    assert_eq!(presence.hear(&mut last).as_deref(), Some("3"));
    presence.answer(&mut last);
    for _ in 0..3 {
        let reply = Presence::wait_for(&runtime, client.recv()).unwrap();
        assert!(reply.unwrap().starts_with(b"go on"));
    }
}

/// On Windows a client can't be queued.
#[cfg(target_os = "linux")]
#[test]
fn the_command_of_a_client_that_has_left_before_it_is_served_is_not_run() {
    let mut presence = Presence::new();
    let command = saying_its_request(&presence);
    let name = unique_name();
    let arguments = [
        "-v",
        "--max-instances",
        "1",
        "--exec-limit",
        "1",
        "--exec",
        &command,
    ];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let connect = || Presence::wait_for(&runtime, Client::connect(&name.text)).unwrap();

    let mut served = connect();
    Presence::wait_for(&runtime, served.send("first")).unwrap();
    let mut running = presence.accept();
    assert_eq!(presence.hear(&mut running).as_deref(), Some("first"));
    let mut queued = connect();
    Presence::wait_for(&runtime, queued.send("gone")).unwrap();
    drop((queued, served));
    let mut last = connect();
    Presence::wait_for(&runtime, last.send("last")).unwrap();
    let mut running = presence.accept();
    assert_eq!(presence.hear(&mut running).as_deref(), Some("last"));
    // The last line may come after the command has spoken.
    for _ in 0..2 {
        server.log().wait_for("command started");
    }
    let logged = server.killed_log();
    assert_eq!(logged.matches("command started").count(), 0, "{logged}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_command_that_can_not_be_started_is_tried_again() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let name = unique_name();
    let server = Server::spawn(server(&name, &["--exec", "cat"]).stderr(Stdio::piped()));
    let process = Pid::from_child(&server.child);
    let limit = getrlimit(Resource::Nofile);
    let set_limit = |current| {
        let limit = Rlimit { current, ..limit };
        prlimit(Some(process), Resource::Nofile, limit).unwrap();
    };

    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = Presence::wait_for(&runtime, Client::connect(&name.text)).unwrap();
    let reply = Presence::wait_for(&runtime, client.call("first"));
    assert_eq!(reply.unwrap(), "first");
    // What is open stays open, and nothing more can be opened.
    set_limit(Some(3));
    Presence::wait_for(&runtime, client.send("second")).unwrap();
    server.log().wait_for("can't be started; trying again");
    set_limit(limit.current);
    let reply = Presence::wait_for(&runtime, client.recv());
    assert_eq!(reply.unwrap().unwrap(), "second");
}

#[test]
fn a_command_may_leave_its_request_unread() {
    let command = match cfg!(windows) {
        true => "echo done",
        false => "exec <&-; printf done",
    };
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", command]);
    let reply = replies(&name, &[&"x".repeat(60_000)], "");
    assert_eq!(reply.trim_end(), "done");
}

#[test]
fn a_command_that_prints_too_much_or_nothing_costs_its_client_the_connection() {
    let commands = match cfg!(windows) {
        true => ["for /L %i in (1, 0, 2) do @echo yes", "cd ."],
        false => ["yes", "true"],
    };
    for command in commands {
        let name = unique_name();
        let _server = Server::start(&name, &["--max-message-size", "10", "--exec", command]);
        assert_eq!(
            run_client(&name, &["hello"], "").status.code(),
            Some(6),
            "{command}"
        );
    }
}
