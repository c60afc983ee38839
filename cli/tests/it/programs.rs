//! The programs as a user runs them: answers, exit codes, stdout and stderr apart, signals.

use std::{
    io::Write,
    process::{Child, Command, Output, Stdio},
};

use support::{UniqueName, unique_name};

use crate::program::{Server, server};

fn client(name: &UniqueName, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended already.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn replies(name: &UniqueName, arguments: &[&str], input: &str) -> String {
    let output = client(name, arguments, input);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

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
fn lines_of_stdin_are_messages_and_empty_ones_are_left_out() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let output = client(&name, &[], "one\n\ntwo\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
    assert!(
        stderr(&output).contains("is empty and is not sent"),
        "{output:?}"
    );
}

#[test]
fn a_line_is_not_read_beyond_the_longest_message() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let limit = ["--max-message-size", "8"];
    assert_eq!(
        replies(&name, &limit, "12345678\r\n12345678"),
        "12345678\n12345678\n"
    );
    for (arguments, line) in [
        (&limit[..], "123456789\n"),
        (&limit[..], "123456789"),
        (
            &["--max-message-size", "8", "--encoding", "utf-16"],
            "猫猫猫猫\n",
        ),
    ] {
        let output = client(&name, arguments, line);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("--max-message-size"), "{output:?}");
    }

    // A line that never ends: the client gives up before it has read all of this.
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mebibyte = vec![b'x'; 1 << 20];
    let written = (0..64).try_for_each(|_| stdin.write_all(&mebibyte));
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(written.is_err());
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
        (["--pipe-name", "a\\b"], "can't be part of the pipe name"),
        (["--idle-timeout", "soon"], "--idle-timeout"),
        (["--idle-timeout", "0s"], "none for no limit"),
        (["--handler-timeout", "0s"], "none for no limit"),
        (["--write-timeout", "0"], "none for no limit"),
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

#[cfg(windows)]
#[test]
fn an_access_list_that_is_not_understood_is_bad_usage() {
    let name = unique_name();
    let output = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
        .args(["--pipe-name", &name.text, "--access", "sddl:everybody"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = stderr(&output);
    assert!(text.contains("--access is \"everybody\""), "{text}");
}

#[test]
fn a_missing_server_is_named_and_exits_3() {
    let name = unique_name();
    let output = client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        stderr(&output).starts_with("pipe-client: nobody serves "),
        "{output:?}"
    );
}

#[test]
fn a_server_that_is_not_trusted_is_sent_nothing_and_named() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let nobody = if cfg!(windows) {
        "S-1-5-7"
    } else {
        "4294967294"
    };
    let output = client(&name, &["--trust", nobody, "hello"], "");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let said = stderr(&output);
    let cure = said.trim_end().rsplit_once("use ").unwrap().1;
    // As it says.
    let (flag, owner) = cure.split_once(' ').unwrap();
    assert_eq!(
        replies(&name, &[flag, owner, "hello"], "").trim_end(),
        "hello"
    );
}

/// Another user could put a socket of its own, or a link to another server of this user, into such a directory.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_of_short_names_that_another_user_could_fill_is_not_used() {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    let unique = unique_name();
    let runtime_directory = Path::new(&unique.text).parent().unwrap();
    let names = runtime_directory.join("pipe-server");
    let client = |trust: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        let command = command.env("XDG_RUNTIME_DIR", runtime_directory);
        let command = command.args(["--pipe-name", "x", "--trust", trust, "hello"]);
        let output = command.output().unwrap();
        (output.status.code(), stderr(&output))
    };
    fs::create_dir(&names).unwrap();
    fs::set_permissions(&names, fs::Permissions::from_mode(0o777)).unwrap();
    let (code, said) = client("system");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("only its owner can write to"), "{said}");
    assert!(said.contains(names.to_str().unwrap()), "{said}");

    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can make a directory of another user");
        return;
    }
    fs::set_permissions(&names, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&names, Some(12_345), None).unwrap();
    let (code, said) = client("system");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("belongs to uid 12345"), "{said}");
    assert!(said.contains("use --trust 12345"), "{said}");
    let (code, said) = client("12345");
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("nobody serves"), "{said}");
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

#[cfg(target_os = "linux")]
#[test]
fn only_this_user_may_connect_unless_told_otherwise() {
    use std::os::unix::fs::PermissionsExt;

    for (arguments, mode) in [
        (&[][..], 0o600),
        (&["--access", "mode:0660"], 0o660),
        (&["--access", "everyone"], 0o666),
    ] {
        let name = unique_name();
        let _server = Server::start(&name, arguments);
        let permissions = std::fs::metadata(&name.text).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_access_that_lets_nobody_else_in_is_reported_at_the_start() {
    for (access, short, warns) in [
        ("everyone", true, true),
        ("mode:0660", true, true),
        ("mode:0600", true, false),
        ("everyone", false, false),
    ] {
        let name = unique_name();
        let path = std::path::Path::new(&name.text);
        let mut command = server(&name, &["--access", access]);
        if short {
            command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
            command
                .args(["--pipe-name", "short", "--access", access])
                .env("XDG_RUNTIME_DIR", path.parent().unwrap())
                .env_remove("RUST_LOG")
                .stdout(Stdio::piped());
        }
        let mut server = Server::spawn(command.stderr(Stdio::piped()));
        server.signal(rustix::process::Signal::TERM);
        assert_eq!(server.ended().0, Some(0));
        let log = server.killed_log();
        assert!(log.contains("stopped"), "{log}");
        let warned = log.contains("give --pipe-name a path");
        assert_eq!(warned, warns, "{access}, {short}: {log}");
    }
}

/// A user without rights.
#[cfg(target_os = "linux")]
#[cfg(target_os = "linux")]
pub(crate) const NOBODY: u32 = 65_534;

/// Whether the programs can be run as that user.
#[cfg(target_os = "linux")]
pub(crate) fn can_run_as_nobody() -> bool {
    use std::os::unix::process::CommandExt as _;

    let can = rustix::process::geteuid().is_root()
        && Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .arg("--version")
            .uid(NOBODY)
            .output()
            .is_ok();
    if !can {
        eprintln!("left out: needs root, and programs that other users can run");
    }
    can
}

#[cfg(target_os = "linux")]
mod socket_group {
    use std::{
        fs,
        os::unix::{
            fs::{MetadataExt as _, PermissionsExt as _, chown},
            process::CommandExt as _,
        },
        path::{Path, PathBuf},
    };

    use super::*;

    const GROUP: u32 = 54_321;

    fn directory_of(name: &UniqueName) -> PathBuf {
        Path::new(&name.text).parent().unwrap().to_owned()
    }

    #[test]
    fn members_of_the_group_may_connect_and_others_may_not() {
        if !can_run_as_nobody() {
            return;
        }
        let name = unique_name();
        fs::set_permissions(directory_of(&name), fs::Permissions::from_mode(0o755)).unwrap();
        let _server = Server::start(&name, &["--socket-group", &GROUP.to_string()]);
        let metadata = fs::symlink_metadata(&name.text).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, GROUP));
        for (group, code) in [(GROUP, 0), (NOBODY, 5)] {
            let output = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
                .args(["--pipe-name", &name.text, "--ping"])
                .stdin(Stdio::null())
                .uid(NOBODY)
                .gid(group)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(code), "{group}: {output:?}");
        }
    }

    #[test]
    fn a_group_that_the_server_is_not_in_is_refused_and_leaves_nothing_behind() {
        if !can_run_as_nobody() {
            return;
        }
        let name = unique_name();
        let directory = directory_of(&name);
        chown(&directory, Some(NOBODY), None).unwrap();
        let output = server(&name, &["--socket-group", &GROUP.to_string()])
            .stderr(Stdio::piped())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains("gid 54321") && said.contains("run it as root"),
            "{said}"
        );
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    }

    #[test]
    fn a_short_name_or_an_unknown_group_is_bad_usage() {
        for (name, group, cure) in [
            ("short", "0", "--socket-group has no effect on a short name"),
            ("/nowhere/pipe", "no such group", "getent group"),
            ("/nowhere/pipe", "4294967295", "take a group id"),
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
                .args(["--pipe-name", name, "--socket-group", group])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{group}: {output:?}");
            assert!(stderr(&output).contains(cure), "{group}: {output:?}");
        }
    }
}

#[test]
fn a_path_is_not_a_name_of_the_system() {
    for program in [
        env!("CARGO_BIN_EXE_pipe-server"),
        env!("CARGO_BIN_EXE_pipe-client"),
    ] {
        let path = match cfg!(windows) {
            true => r"\\host\pipe\x",
            false => "./x",
        };
        let output = Command::new(program)
            .args(["--system", "--pipe-name", path])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains("--system needs a short name"), "{said}");
    }
}

#[cfg(target_os = "linux")]
mod of_the_system {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    /// In the one directory of the system.
    fn name() -> String {
        format!("pipe-server-test-{}", std::process::id())
    }

    fn server(name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
        command
            .args(["--system", "--echo", "--pipe-name", name])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", "/nowhere")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn client(name: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .args(["--system", "--pipe-name", name])
            .args(arguments)
            .env("XDG_RUNTIME_DIR", "/run/user/65534")
            .stdin(Stdio::null())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap()
    }

    #[test]
    fn a_service_of_root_and_a_client_of_any_user_meet() {
        if !can_run_as_nobody() {
            return;
        }
        let name = name();
        let running = Server::spawn(&mut server(&name, &["--access", "everyone"]));
        let path = format!("/run/pipe-server/{name}.pipe");
        assert_eq!(running.first_line, format!("listening on {path}\n"));
        let output = client(&name, &["hello"]);
        assert_eq!(output.stdout, b"hello\n", "{output:?}");
        let output = client(&name, &["--trust", "current-user", "hello"]);
        assert!(stderr(&output).contains("uid 0, who is not trusted"));
        drop(running);

        // By default nobody else gets in.
        let running = Server::spawn(&mut server(&name, &[]));
        running.log().wait_for("admit them with --access");
        assert_eq!(client(&name, &["--ping"]).status.code(), Some(5));
        assert_eq!(running.end(rustix::process::Signal::TERM).0, Some(0));
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn another_user_is_told_who_can_serve_it() {
        if !can_run_as_nobody() {
            return;
        }
        let mut command = server(&format!("{}-nobody", name()), &[]);
        let output = command.uid(NOBODY).gid(NOBODY).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains("run the server as root"), "{said}");
        assert!(said.contains("RuntimeDirectory="), "{said}");
    }
}

#[test]
fn figures_are_logged_at_intervals() {
    let name = unique_name();
    let arguments = ["--echo", "--stats", "10ms"];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
    let line = server.log().wait_for(" requests=1 ");
    for figure in [
        "INFO",
        "accepted=1",
        "replies=1",
        "bytes_received=5",
        "bytes_sent=5",
    ] {
        assert!(line.contains(figure), "{line}");
    }
    server.log().wait_for(" requests=1 ");
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

    let start = |name: &UniqueName, through: &[&str]| {
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

#[test]
fn only_the_users_that_are_allowed_are_served_and_others_are_logged() {
    let nobody = if cfg!(windows) {
        "S-1-5-7"
    } else {
        "4294967294"
    };
    let peer = pipe_server::Peer::current().unwrap();
    let own = match peer.user() {
        #[cfg(unix)]
        pipe_server::UserId::Uid(uid) => uid.to_string(),
        #[cfg(windows)]
        pipe_server::UserId::Sid(sid) => sid.clone(),
        other => panic!("{other}"),
    };
    let name = unique_name();
    let mut command = server(&name, &["--echo", "--allow-user", nobody]);
    let refusing = Server::spawn(command.stderr(Stdio::piped()));
    let output = client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = refusing.log().wait_for("not_authorized");
    assert!(line.contains("WARN"), "{line}");
    assert!(line.contains("--allow-user"), "{line}");
    assert!(
        line.contains(&format!("peer.user={}", peer.user())),
        "{line}"
    );

    let name = unique_name();
    let users = ["--echo", "--allow-user", nobody, "--allow-user", &own];
    let _allowing = Server::start(&name, &users);
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
}

#[cfg(unix)]
#[test]
fn ctrl_c_and_sigterm_drain_exit_0_and_leave_nothing_behind() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let name = unique_name();
        let server = Server::start(&name, &["--echo"]);
        assert_eq!(replies(&name, &["hello"], ""), "hello\n");
        assert_eq!(server.end(signal), (Some(0), String::new()));
        let directory = std::path::Path::new(&name.text).parent().unwrap();
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}

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
    let output = client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(stderr(&output).contains("did not reply"), "{output:?}");
    let line = server.log().wait_for("complaint");
    assert!(line.contains(status), "{line}");
}

/// What ends a command and what it has started, and what does not.
mod endings {
    use std::{future::Future, time::Duration};

    use pipe_server::{Client, Connection, PipeListener};
    use pipe_server_cli::family::{Family, shell};
    use tokio::{
        runtime::{Builder, Runtime},
        time::timeout,
    };

    use super::*;

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

    #[cfg(unix)]
    #[test]
    fn a_second_signal_ends_the_server_and_its_commands_at_once() {
        use rustix::process::Signal;

        let mut endless = Endless::start(&["--drain-timeout", "1h"]);
        // SIGINT and SIGTERM: two of the same may become one on their way.
        endless.server.signal(Signal::INT);
        endless.server.signal(Signal::TERM);
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
        runtime.spawn(async move { Family::start(shell(&command)).unwrap().wait().await });
        let mut family = presence.accept_family();
        drop(runtime);
        presence.assert_gone(&mut family);
    }

    #[test]
    fn what_a_command_leaves_running_goes_on() {
        let mut presence = Presence::new();
        let command = in_background(&presence.process("left behind")) + "echo done";
        let pipes = Presence::wait_for(&presence.runtime, async {
            let mut family = Family::start(shell(&command)).unwrap();
            let pipes = family.take_pipes();
            assert!(family.wait().await.unwrap().success());
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
        let logged = server.killed_log();
        assert_eq!(logged.matches("command started").count(), 2, "{logged}");
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
                client(&name, &["hello"], "").status.code(),
                Some(6),
                "{command}"
            );
        }
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
    let output = client(&name, &["--wait", "hello"], "");
    _ = child.kill();
    _ = child.wait();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "default answer from server\n"
    );
}

/// The exit codes of `pipe-client`, which scripts and health checks tell apart.
mod codes {
    use pipe_server::{Client, ListenerOptions, PipeListener};
    use support::in_time;
    use tokio::task::spawn_blocking;

    use super::*;

    /// The two ways to ask a server: for its reply, and whether there is one.
    const WAYS: [&str; 2] = ["hello", "--ping"];

    async fn ask(way: &'static str, name: &UniqueName, arguments: &[&'static str]) -> Output {
        let name = name.text.clone();
        let arguments = arguments.to_owned();
        let run = move || {
            Command::new(env!("CARGO_BIN_EXE_pipe-client"))
                .args(["--pipe-name", &name, way])
                .args(arguments)
                // Empty: if it were read, no message would be sent.
                .stdin(Stdio::null())
                .output()
                .unwrap()
        };
        spawn_blocking(run).await.unwrap()
    }

    /// Asserts the code and that the one line on stderr contains `said`.
    fn assert_failed(output: &Output, code: i32, said: &str) {
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let line = stderr(output);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(said), "{line}");
    }

    #[tokio::test]
    async fn a_server_that_answers_is_0() {
        let name = unique_name();
        let _server = Server::start(&name, &["--echo"]);
        for message in [&[][..], &["hello"]] {
            let output = ask("--ping", &name, message).await;
            assert!(output.status.success(), "{output:?}");
            let line = String::from_utf8(output.stdout).unwrap();
            assert!(line.contains(" replied in "), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_3() {
        let name = unique_name();
        let wait = ["--wait", "--connect-timeout", "10ms"];
        for way in WAYS {
            assert_failed(&ask(way, &name, &[]).await, 3, "nobody serves");
            assert_failed(&ask(way, &name, &wait).await, 3, "nobody serves");
        }
    }

    #[tokio::test]
    async fn a_busy_server_is_4() {
        in_time(async {
            let name = unique_name();
            let mut listener = ListenerOptions::new()
                .max_instances(1)
                .bind(&name.text)
                .unwrap();
            let _client = Client::connect(&name.text).await.unwrap();
            let _connection = listener.accept().await.unwrap();
            // The one more that Linux queues.
            #[cfg(target_os = "linux")]
            let _queued = Client::connect(&name.text).await.unwrap();
            for way in WAYS {
                let output = ask(way, &name, &["--connect-timeout", "0s"]).await;
                assert_failed(&output, 4, "busy");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_server_that_is_not_trusted_is_5() {
        let name = unique_name();
        let _server = Server::start(&name, &["--echo"]);
        let nobody = if cfg!(windows) {
            "S-1-5-7"
        } else {
            "4294967294"
        };
        for way in WAYS {
            let output = ask(way, &name, &["--trust", nobody]).await;
            assert_failed(&output, 5, "--trust");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_server_that_denies_access_is_5() {
        use std::os::unix::process::CommandExt as _;

        let name = unique_name();
        let _server = Server::start(&name, &["--echo", "--access", "mode:0000"]);
        for way in WAYS {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
            command.args(["--pipe-name", &name.text, way]);
            // No mode keeps root out.
            if rustix::process::geteuid().is_root() {
                if !can_run_as_nobody() {
                    return;
                }
                command.uid(NOBODY).gid(NOBODY);
            }
            let output = command.stdin(Stdio::null()).output().unwrap();
            assert_failed(&output, 5, "no permission");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_6() {
        in_time(async {
            let name = unique_name();
            let mut listener = PipeListener::bind(&name.text).unwrap();
            for way in WAYS {
                let silent = ask(way, &name, &["--timeout", "100ms"]);
                let (output, _connection) = tokio::join!(silent, listener.accept());
                assert_failed(&output, 6, "within 100ms: see --timeout");

                let closing = async {
                    let mut connection = listener.accept().await.unwrap();
                    connection.recv().await.unwrap().unwrap();
                };
                let (output, ()) = tokio::join!(ask(way, &name, &[]), closing);
                assert_failed(&output, 6, "no reply from");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn other_failures_keep_their_codes() {
        let name = unique_name();
        let _server = Server::start(&name, &["--echo"]);
        for way in WAYS {
            let output = ask(way, &name, &["--max-message-size", "1"]).await;
            assert_failed(&output, 1, "--max-message-size");
            let output = ask(way, &name, &["--max-message-size", "1TiB"]).await;
            assert_failed(&output, 2, "--max-message-size");
        }
    }
}

/// Another machine gets this user's credentials, and so does whoever answers to its name.
#[cfg(windows)]
#[test]
fn another_machine_is_asked_only_if_allowed() {
    let mut remote = unique_name();
    remote.text = format!(r"\\localhost\pipe\{}", remote.text);
    let output = client(&remote, &["hello"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("use --allow-remote"), "{output:?}");
    // Nobody serves it there.
    let output = client(&remote, &["--allow-remote", "hello"], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr(&output).contains("nobody serves"), "{output:?}");
}
