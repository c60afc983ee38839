//! The server under systemd, whose part the test plays: a shell passes the socket, and the test
//! receives what the server reports.

use std::{
    fs,
    io::ErrorKind,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use support::{DEADLINE, UniqueName, listening_socket, unique_name};

use crate::program::{NOBODY, Server, can_run_as_nobody};

/// The server with `socket` as each of `count` descriptors from 3 on.
fn activated(socket: impl Into<OwnedFd>, count: u32, arguments: &[&str]) -> Command {
    let copies: String = (0..count)
        .map(|index| format!("{}<&0 ", 3 + index))
        .collect();
    let script =
        format!(r#"exec {copies}</dev/null; export LISTEN_FDS={count} LISTEN_PID=$$; exec "$@""#);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_pipe-server")])
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::from(socket.into()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn call(name: &UniqueName, message: &str) -> String {
    let output = client(name).arg(message).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn client(name: &UniqueName) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
    command
        .args(["--pipe-name", &name.text])
        .stdin(Stdio::null());
    command
}

fn assert_fails(command: &mut Command, code: i32, said: &str) {
    let output: Output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains(said) && stderr.lines().count() == 1,
        "{stderr}"
    );
}

/// Where the server reports to.
struct Manager(UnixDatagram);

impl Manager {
    fn at(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    /// Waits for a report with this line.
    fn wait_for(&self, line: &str) -> String {
        let mut report = [0; 4096];
        loop {
            let length = match self.0.recv(&mut report) {
                // By a SIGCHLD: another test's child has ended. With a timeout it is not restarted
                // (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                received => received.expect("it reports nothing"),
            };
            let report = String::from_utf8_lossy(&report[..length]);
            if report.lines().any(|other| other == line) {
                return report.into_owned();
            }
        }
    }
}

#[test]
fn a_socket_of_systemd_is_served_and_left_in_place() {
    let name = unique_name();
    let server = Server::spawn(&mut activated(listening_socket(&name), 1, &["--echo"]));
    assert_eq!(
        server.first_line.trim_end(),
        format!("listening on {}", name.text)
    );
    assert_eq!(call(&name, "hello"), "hello\n");
    assert_eq!(server.end(Signal::TERM).0, Some(0));
    assert!(Path::new(&name.text).exists());
}

#[test]
fn a_client_that_the_last_server_left_in_the_queue_is_served_by_the_next() {
    let name = unique_name();
    let socket = listening_socket(&name);
    let server = Server::spawn(&mut activated(socket.try_clone().unwrap(), 1, &["--echo"]));
    assert_eq!(server.end(Signal::TERM).0, Some(0));
    let client = client(&name)
        .arg("hello")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _server = Server::spawn(&mut activated(socket, 1, &["--echo"]));
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"hello\n", "{output:?}");
}

#[test]
fn the_manager_is_told_that_the_server_is_ready_alive_and_stopping() {
    let name = unique_name();
    let path = format!("{}.notify", name.text);
    let unique = Path::new(&name.text).file_name().unwrap();
    let unique = unique.to_str().unwrap();
    for (variable, address) in [
        (path.clone(), SocketAddr::from_pathname(&path).unwrap()),
        (
            format!("@{unique}"),
            SocketAddr::from_abstract_name(unique).unwrap(),
        ),
    ] {
        let manager = Manager::at(&address);
        let mut command = activated(listening_socket(&name), 1, &["--echo"]);
        command
            .env("NOTIFY_SOCKET", variable)
            .env("WATCHDOG_USEC", "200000");
        let mut server = Server::spawn(&mut command);
        let report = manager.wait_for("READY=1");
        let status = format!("STATUS=listening on {}", name.text);
        assert!(report.lines().any(|line| line == status), "{report}");
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        server.signal(Signal::TERM);
        let report = manager.wait_for("STOPPING=1");
        assert!(report.contains("STATUS=stopping"), "{report}");
        assert_eq!(server.ended().0, Some(0));
    }
}

#[test]
fn the_status_says_how_many_requests_were_answered() {
    let name = unique_name();
    let path = format!("{}.notify", name.text);
    let manager = Manager::at(&SocketAddr::from_pathname(&path).unwrap());
    let mut command = activated(listening_socket(&name), 1, &["--echo"]);
    let _server = Server::spawn(command.env("NOTIFY_SOCKET", path));
    call(&name, "hello");
    manager.wait_for("STATUS=serving; clients: 0, requests answered: 1");
}

#[test]
fn a_manager_that_is_not_there_or_does_not_read_costs_nothing() {
    let name = unique_name();
    let path = format!("{}.notify", name.text);
    let mut command = activated(listening_socket(&name), 1, &["--echo"]);
    let server = Server::spawn(command.env("NOTIFY_SOCKET", &path));
    assert_eq!(call(&name, "hello"), "hello\n");
    drop(server);

    let _full = Manager::at(&SocketAddr::from_pathname(&path).unwrap());
    let mut command = activated(listening_socket(&name), 1, &["--echo"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "2000")
        .stderr(Stdio::piped());
    let mut server = Server::spawn(&mut command);
    let problem = "the service manager could not be told";
    server.log().wait_for(problem);
    // It is told once a millisecond meanwhile.
    for _ in 0..20 {
        assert_eq!(call(&name, "hello"), "hello\n");
    }
    server.signal(Signal::TERM);
    let rest = server.log().up_to("stopped").concat();
    assert!(!rest.contains(problem), "{rest}");
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn a_command_is_not_told_what_is_meant_for_the_server() {
    let name = unique_name();
    let exec = "env; [ -e /proc/$$/fd/3 ] && echo LEAKED; true";
    let mut command = activated(listening_socket(&name), 1, &["--exec", exec]);
    command
        .env("LISTEN_FDNAMES", "pipe")
        .env("NOTIFY_SOCKET", "/nowhere")
        .env("WATCHDOG_USEC", "3600000000")
        .env("KEPT", "yes");
    let _server = Server::spawn(&mut command);
    let said = call(&name, "?");
    assert!(said.contains("KEPT=yes"), "{said}");
    for word in ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "LEAKED"] {
        assert!(!said.contains(word), "{said}");
    }
}

#[test]
fn one_of_several_sockets_is_chosen_by_its_name() {
    let name = unique_name();
    let activated = |arguments: &[&str]| {
        let mut command = activated(listening_socket(&name), 2, arguments);
        command.env("LISTEN_FDNAMES", "one:two");
        command
    };
    let server = Server::spawn(&mut activated(&["--echo", "--fd-name", "two"]));
    assert_eq!(call(&name, "hello"), "hello\n");
    drop(server);
    assert_fails(
        &mut activated(&[]),
        1,
        "one, two: choose one with --fd-name",
    );
    assert_fails(&mut activated(&["--fd-name", "three"]), 1, "but one, two");
}

#[test]
fn sockets_without_names_are_counted() {
    let name = unique_name();
    for (names, listed) in [
        ("", "passed, 3 without a name: "),
        ("one::", "passed, one and 2 without a name: "),
    ] {
        let activated = |arguments: &[&str]| {
            let mut command = activated(listening_socket(&name), 3, arguments);
            command.env("LISTEN_FDNAMES", names);
            command
        };
        assert_fails(&mut activated(&[]), 1, listed);
        let listed = listed.replace("passed,", "passed, but");
        assert_fails(&mut activated(&["--fd-name", "x"]), 1, &listed);
    }
}

#[test]
fn a_socket_or_an_option_that_does_not_fit_is_a_failure_that_says_what_to_do() {
    let name = unique_name();
    let stream = UnixListener::bind(format!("{}.stream", name.text)).unwrap();
    assert_fails(&mut activated(stream, 1, &[]), 1, "ListenSequentialPacket=");
    for (arguments, said) in [
        (["--pipe-name", "x"], "leave them out"),
        (["--access", "everyone"], "--access has no effect"),
        (["--socket-group", "0"], "SocketGroup="),
    ] {
        let mut command = activated(listening_socket(&name), 1, &arguments);
        assert_fails(&mut command, 2, said);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
    command.args(["--fd-name", "x"]);
    assert_fails(&mut command, 1, "but none");
    let mut command = Command::new("sh");
    let script = r#"LISTEN_FDS=x LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; exec "$@""#;
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_pipe-server")]);
    assert_fails(&mut command, 1, "LISTEN_FDS and LISTEN_PID");
}

#[test]
fn variables_that_are_meant_for_another_process_are_ignored() {
    let name = unique_name();
    let mut command = crate::program::server(&name, &["--echo"]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let _server = Server::spawn(&mut command);
    assert_eq!(call(&name, "hello"), "hello\n");
}

/// Clients ask who called listen(2). If that became the server's user, they would not trust it any
/// more.
#[test]
fn clients_of_other_users_trust_a_socket_of_root_before_and_after_the_server_was_full() {
    if !can_run_as_nobody() {
        return;
    }
    let name = unique_name();
    let directory = Path::new(&name.text).parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = listening_socket(&name);
    fs::set_permissions(&name.text, fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = activated(socket, 1, &["--echo", "--max-instances", "1"]);
    let _server = Server::spawn(command.uid(NOBODY).gid(NOBODY));
    for _ in 0..3 {
        let output = client(&name)
            .arg("--ping")
            .uid(NOBODY - 1)
            .gid(NOBODY - 1)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn the_units_are_valid() {
    let tool = "systemd-analyze";
    if Command::new(tool).arg("--version").output().is_err() {
        eprintln!("left out: there is no {tool}; the package systemd has it");
        return;
    }
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/systemd");
    let name = unique_name();
    let directory = Path::new(&name.text).parent().unwrap();
    let copies = ["pipe-server.socket", "pipe-server.service"].map(|unit| {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        let here = env!("CARGO_BIN_EXE_pipe-server");
        let copy = directory.join(unit);
        fs::write(&copy, text.replace("/usr/local/bin/pipe-server", here)).unwrap();
        copy
    });
    let output = Command::new(tool)
        .args(["verify", "--man=no"])
        .args(copies)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("pipe-server"), "{said}");
}

#[test]
fn systemd_socket_activate_starts_the_server_with_its_first_client() {
    let tool = "systemd-socket-activate";
    if Command::new(tool).arg("--version").output().is_err() {
        eprintln!("left out: there is no {tool}; the package systemd has it");
        return;
    }
    let name = unique_name();
    let mut activate = Command::new(tool)
        .args(["--seqpacket", "--listen", &name.text])
        .args([env!("CARGO_BIN_EXE_pipe-server"), "--echo"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = client(&name).args(["--wait", "hello"]).output();
    // It has become the server.
    _ = activate.kill();
    _ = activate.wait();
    let output = output.unwrap();
    assert_eq!(output.stdout, b"hello\n", "{output:?}");
}

/// Nothing in proportion to the number is done: the limit of memory is far below it.
#[test]
fn descriptors_that_were_not_passed_are_a_failure() {
    for count in ["2", "2000000000", "4294967295"] {
        let script = r#"exec 3</dev/null; export LISTEN_FDS=$0 LISTEN_PID=$$; exec "$@""#;
        let mut command = Command::new("prlimit");
        command
            .args(["--as=4000000000", "sh", "-c", script, count])
            .arg(env!("CARGO_BIN_EXE_pipe-server"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        assert_fails(&mut command, 1, "LISTEN_FDS");
    }
}
