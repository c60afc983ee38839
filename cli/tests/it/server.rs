//! `pipe-server`: its answers, its address, usage, figures and signals.

use std::process::{Command, Stdio};

use support::unique_name;

use crate::program::{Server, replies, run_client, server, stderr};

#[test]
fn the_first_line_on_stdout_is_the_address() {
    let name = unique_name();
    let server = Server::start(&name, &[]);
    let name: pipe_server::PipeName = name.text.parse().unwrap();
    let address = name.to_path();
    assert_eq!(
        server.first_line.trim_end(),
        format!("listening on {}", address.display())
    );
}

#[test]
fn the_default_answer_is_the_samples() {
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[test]
fn each_message_gets_a_reply_on_a_line_of_its_own() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo", "--max-instances", "1"]);
    assert_eq!(
        replies(&name, &["one", "two words", "grüße"], ""),
        "one\ntwo words\ngrüße\n"
    );
    assert_eq!(replies(&name, &["again"], ""), "again\n");
}

#[test]
fn a_reply_comes_in_the_encoding_of_its_request() {
    let name = unique_name();
    let _server = Server::start(&name, &["--reply", "grüße"]);
    for encoding in ["utf-8", "utf-16"] {
        assert_eq!(
            replies(&name, &["--encoding", encoding, "hello"], ""),
            "grüße\n"
        );
    }
}

#[test]
fn a_size_that_the_system_can_not_carry_is_bad_usage() {
    let name = unique_name();
    let server = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
    let client = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
    for mut command in [server, client] {
        let output = command
            .args(["--pipe-name", &name.text, "--max-message-size", "1TiB"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = stderr(&output);
        assert!(text.contains("--max-message-size is "), "{text}");
    }
}

#[test]
fn bad_usage_exits_2_and_says_what_to_do() {
    for (arguments, cure) in [
        (["--max-instances", "0"], "1 or more, or unlimited"),
        (["--pipe-name", r"a\..\b"], "can't be part of the pipe name"),
        (["--idle-timeout", "soon"], "--idle-timeout"),
        (["--idle-timeout", "0s"], "none for no limit"),
        (["--handler-timeout", "0s"], "none for no limit"),
        (["--write-timeout", "0"], "none for no limit"),
        (["--max-buffered-bytes", "0"], "1 byte or more, or none"),
        (["--allow-user", "root"], "such as"),
        (["--no-such-flag", "x"], "--no-such-flag"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(cure), "{arguments:?}: {output:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_missing_directory_is_named() {
    let name = unique_name();
    for (xdg, pipe) in [
        ("/nowhere", format!("{}/x/pipe", name.text)),
        (name.text.as_str(), "short".to_owned()),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
            .args(["--pipe-name", &pipe])
            .env("XDG_RUNTIME_DIR", xdg)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains(&name.text), "{said}");
        assert!(
            said.contains("create it") || said.contains("XDG_RUNTIME_DIR"),
            "{said}"
        );
    }
}

#[test]
fn a_second_server_on_the_name_exits_1_with_one_line() {
    #[cfg(windows)]
    if support::win32::wine_lacks("exclusive names") {
        return;
    }
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    let output = server(&name, &[]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("is already served"), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_a_killed_server_left_is_replaced() {
    let name = unique_name();
    // Killed by the guard: it can't clean up.
    drop(Server::start(&name, &[]));
    assert!(std::path::Path::new(&name.text).exists());
    let _server = Server::start(&name, &[]);
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_no_socket_is_left_as_it_is() {
    let name = unique_name();
    std::fs::write(&name.text, "precious").unwrap();
    let output = server(&name, &[]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("not a socket"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&name.text).unwrap(), "precious");
}

#[test]
fn figures_are_logged_at_intervals() {
    let name = unique_name();
    let arguments = ["--echo", "--stats", "10ms"];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
    let line = server.log().wait_for(" bytes_sent=5 ");
    for figure in [
        "INFO",
        "accepted=1",
        "replies=1",
        "bytes_received=5",
        "bytes_sent=5",
    ] {
        assert!(line.contains(figure), "{line}");
    }
    server.log().wait_for(" bytes_sent=5 ");
}

#[cfg(unix)]
#[test]
fn figures_are_logged_at_sigusr1() {
    let name = unique_name();
    let mut server = Server::spawn(server(&name, &["--echo"]).stderr(Stdio::piped()));
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
    server.signal(rustix::process::Signal::USR1);
    let line = server.log().wait_for(" requests=1 ");
    assert!(
        line.contains("INFO") && line.contains("accepted=1"),
        "{line}"
    );
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
}

#[cfg(unix)]
#[test]
fn sighup_drains_but_not_under_nohup() {
    use rustix::process::Signal;

    let start = |name: &support::UniqueName, through: &[&str]| {
        let mut command = Command::new(through[0]);
        command
            .args(&through[1..])
            .arg(env!("CARGO_BIN_EXE_pipe-server"))
            .args(["--pipe-name", &name.text, "--echo"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Server::spawn(&mut command)
    };
    // The tests themselves may run under nohup.
    let name = unique_name();
    let mut server = start(&name, &["env", "--default-signal=HUP"]);
    server.signal(Signal::HUP);
    let line = server.log().wait_for("stopping");
    assert!(line.contains("SIGHUP"), "{line}");
    assert_eq!(server.ended(), (Some(0), String::new()));

    let mut server = start(&name, &["nohup"]);
    server.signal(Signal::HUP);
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    // It would have come first, and been logged.
    let line = server.log().wait_for("stopping");
    assert!(line.contains("SIGTERM"), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_and_sigterm_drain_exit_0_and_leave_nothing_behind() {
    use crate::program::ending_signals;

    for signal in ending_signals() {
        let name = unique_name();
        let server = Server::start(&name, &["--echo"]);
        assert_eq!(replies(&name, &["hello"], ""), "hello\n");
        assert_eq!(server.end(signal), (Some(0), String::new()));
        let directory = std::path::Path::new(&name.text).parent().unwrap();
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}

#[test]
fn a_server_that_nobody_reads_serves_all_the_same() {
    let name = unique_name();
    let mut child = server(&name, &["-vv"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let output = run_client(&name, &["--wait", "hello"], "");
    _ = child.kill();
    _ = child.wait();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "default answer from server\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_need_not_be_unicode() {
    use std::{
        ffi::OsString,
        io::{BufRead as _, BufReader},
        os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    };

    let name = unique_name();
    let mut path = OsString::from(&name.text);
    path.push(OsString::from_vec(vec![0xff]));
    let mut server = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
        .args(["--echo", "--pipe-name"])
        .arg(&path)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = Vec::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    stdout.read_until(b'\n', &mut line).unwrap();
    let client = |command: &mut Command| {
        let output = command.arg("hello").output().unwrap();
        assert_eq!(output.stdout, b"hello\n", "{output:?}");
    };
    let listening = [b"listening on ", path.as_bytes(), b"\n"].concat();
    let mut program = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
    if line == listening {
        client(program.arg("--pipe-name").arg(&path));
        let mut program = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        client(program.env("PIPE_CLIENT_PIPE_NAME", &path));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(line, listening);
}

/// A shell without job control starts a command with `&` so, and means that Ctrl-C is not for it.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    use rustix::process::Signal;

    use crate::program::is_ignored;

    let name = unique_name();
    let program = server(&name, &["--echo"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"trap "" INT HUP; exec "$@""#, "sh"])
        .arg(program.get_program())
        .args(program.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let server = Server::spawn(&mut command);
    let id = server.child.id();
    assert!(is_ignored(id, Signal::INT) && is_ignored(id, Signal::HUP));
    server.signal(Signal::INT);
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
    assert_eq!(server.end(Signal::TERM).0, Some(0));
}
