//! Who may connect: `--access`, `--socket-group`, `--allow-user` and `--system`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
};

use support::{UniqueName, unique_name};

use crate::program::{OTHER_USER, Server, replies, run_client, server, stderr};

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

#[test]
fn only_the_users_that_are_allowed_are_served_and_others_are_logged() {
    let peer = pipe_server::Peer::current().unwrap();
    let own = match peer.user() {
        #[cfg(unix)]
        pipe_server::UserId::Uid(uid) => uid.to_string(),
        #[cfg(windows)]
        pipe_server::UserId::Sid(sid) => sid.clone(),
        other => panic!("{other}"),
    };
    let name = unique_name();
    let mut command = server(&name, &["--echo", "--allow-user", OTHER_USER]);
    let refusing = Server::spawn(command.stderr(Stdio::piped()));
    let output = run_client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = refusing.log().wait_for("not_authorized");
    assert!(line.contains("WARN"), "{line}");
    assert!(line.contains("--allow-user"), "{line}");
    assert!(line.contains(&format!("peer.user={own}")), "{line}");

    let name = unique_name();
    let users = ["--echo", "--allow-user", OTHER_USER, "--allow-user", &own];
    let _allowing = Server::start(&name, &users);
    assert_eq!(replies(&name, &["hello"], ""), "hello\n");
}

#[test]
fn the_connections_of_one_user_are_bounded_if_asked_for() {
    for (limit, code) in [("1", 6), ("2", 0), ("unlimited", 0)] {
        let name = unique_name();
        let _server = Server::start(&name, &["--echo", "--max-connections-per-user", limit]);
        let mut held = Held::connect(&name, |command| command);
        let output = run_client(&name, &["hello"], "");
        assert_eq!(output.status.code(), Some(code), "{limit}: {output:?}");
        assert_eq!(held.call("again"), "again", "{limit}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn another_user_gets_half_of_the_places_and_not_the_last_one() {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
        path::Path,
    };

    use crate::program::{NOBODY, can_run_as_nobody};

    if !can_run_as_nobody() {
        return;
    }
    for (arguments, instances, share) in [
        (&[][..], "4", 2),
        (&["--max-connections-per-user", "9"], "4", 3),
        (&["--max-connections-per-user", "unlimited"], "2", 2),
    ] {
        let name = unique_name();
        let directory = Path::new(&name.text).parent().unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = server(&name, &["--echo", "--access", "everyone"]);
        command.args(["--max-instances", instances]).args(arguments);
        let _server = Server::spawn(&mut command);
        let as_nobody = |command: Command| {
            let mut command = command;
            command.uid(NOBODY).gid(NOBODY);
            command
        };
        let held: Vec<_> = (0..share)
            .map(|_| Held::connect(&name, as_nobody))
            .collect();
        if arguments.contains(&"unlimited") {
            continue;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        command
            .args(["--pipe-name", &name.text, "hello"])
            .stdin(Stdio::null());
        let output = as_nobody(command).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{arguments:?}: {output:?}");
        assert_eq!(replies(&name, &["hello"], ""), "hello\n");
        drop(held);
    }
}

/// A client that stays connected.
struct Held {
    child: Child,
    replies: BufReader<ChildStdout>,
}

impl Held {
    /// Connects with the command that `adapt` returns, and has a reply.
    fn connect(name: &UniqueName, adapt: impl Fn(Command) -> Command) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        command
            .args(["--pipe-name", &name.text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = adapt(command).spawn().unwrap();
        let replies = BufReader::new(child.stdout.take().unwrap());
        let mut held = Self { child, replies };
        assert_eq!(held.call("hello"), "hello");
        held
    }

    fn call(&mut self, request: &str) -> String {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{request}").unwrap();
        let mut reply = String::new();
        self.replies.read_line(&mut reply).unwrap();
        reply.trim_end().to_owned()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
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
    use crate::program::{NOBODY, can_run_as_nobody};

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
    use std::{os::unix::process::CommandExt as _, process::Output};

    use super::*;
    use crate::program::{NOBODY, can_run_as_nobody};

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
        assert!(stderr(&output).contains("user 0, who is not trusted"));
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
