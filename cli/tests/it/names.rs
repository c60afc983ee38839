//! Names on Linux: the files of a pipe, and user namespaces.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::Signal,
};
use support::unique_name;

use crate::program::{NOBODY, Server, can_run_as_nobody, stderr};

const SERVER: &str = env!("CARGO_BIN_EXE_pipe-server");

fn server(name: &str) -> Command {
    let mut command = Command::new(SERVER);
    run(command.args(["--echo", "--pipe-name", name]));
    command
}

fn run(command: &mut Command) {
    command
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

#[test]
fn a_relative_path_is_served_as_an_absolute_one_if_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let running = Server::spawn(server("./r.pipe").current_dir(&path));
    let line = format!("listening on {}\n", path.join("r.pipe").display());
    assert_eq!(running.first_line, line);
    let output = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", "./r.pipe", "hello"])
        .current_dir(&path)
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"hello\n", "{output:?}");
    assert_eq!(running.end(Signal::TERM).0, Some(0));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

    // Too long, or with a character that a name can't have.
    for name in ["n".repeat(100), "line\nbreak".to_owned()] {
        let path = path.join(name);
        fs::create_dir(&path).unwrap();
        let running = Server::spawn(server("./r.pipe").current_dir(path));
        assert_eq!(running.first_line, "listening on ./r.pipe\n");
        assert_eq!(running.end(Signal::TERM).0, Some(0));
    }
}

#[test]
fn the_directory_of_short_names_is_locked_while_a_pipe_is_served() {
    let runtime_directory = tempfile::tempdir().unwrap();
    let short = |name| {
        let mut command = server(name);
        command.env("XDG_RUNTIME_DIR", runtime_directory.path());
        Server::spawn(&mut command)
    };
    let servers = [short("one"), short("other")];
    let directory = File::open(runtime_directory.path().join("pipe-server")).unwrap();
    // As systemd-tmpfiles tries it.
    let lock = || flock(&directory, FlockOperation::NonBlockingLockExclusive);
    for server in servers {
        assert_eq!(lock(), Err(Errno::WOULDBLOCK));
        assert_eq!(server.end(Signal::TERM).0, Some(0));
    }
    assert_eq!(lock(), Ok(()));
}

#[test]
fn the_lock_file_can_be_opened_again_whatever_the_umask() {
    let name = unique_name();
    let mut command = Command::new("sh");
    let script = r#"umask 0777; exec "$0" --pipe-name "$1""#;
    run(command.args(["-c", script, SERVER, &name.text]));
    let _server = Server::spawn(&mut command);
    for file in [name.text.clone(), format!("{}.lock", name.text)] {
        let mode = fs::symlink_metadata(file).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

/// Root can open any file: this is for the other users.
#[test]
fn what_a_server_creates_can_be_opened_again_whatever_the_umask() {
    if !can_run_as_nobody() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    chown(path, Some(NOBODY), None).unwrap();
    let start = || {
        let mut command = Command::new("sh");
        let script =
            r#"umask 0777; exec "$0" --pipe-name short --log-file "$1/log" --dump "$1/dump""#;
        run(command.args(["-c", script, SERVER]));
        command.arg(path).env("XDG_RUNTIME_DIR", path).uid(NOBODY);
        let server = Server::spawn(&mut command);
        let line = server.first_line.clone();
        (server.end(Signal::TERM).0, line)
    };
    for _ in 0..2 {
        let (code, line) = start();
        assert!(line.starts_with("listening on "), "{code:?} {line}");
        assert_eq!(code, Some(0));
    }
    for (file, mode) in [("pipe-server", 0o700), ("log", 0o600), ("dump", 0o600)] {
        let found = fs::metadata(path.join(file)).unwrap().mode();
        assert_eq!(found & 0o7777, mode, "{file}");
    }
}

#[test]
fn a_second_server_is_told_the_process_of_the_first() {
    let name = unique_name();
    let running = Server::spawn(&mut server(&name.text));
    let output = server(&name.text).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains(&format!("by process {}", running.child.id())),
        "{said}"
    );
}

/// A user namespace that maps this user alone, as root.
fn in_a_namespace(program: &str) -> Command {
    let mut command = Command::new("unshare");
    run(command.args(["--user", "--map-root-user", program]));
    command
}

fn has_namespaces() -> bool {
    let output = in_a_namespace("true").output();
    let has = output.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("left out: needs unshare(1) and user namespaces");
    }
    has
}

#[test]
fn a_directory_of_an_unmapped_user_is_not_called_another_users() {
    if !can_run_as_nobody() || !has_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("pipe");
    chown(directory.path(), Some(NOBODY - 1), None).unwrap();
    // Root outside may own it, as it owns /tmp.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let mut command = in_a_namespace(SERVER);
    command.arg("--pipe-name").arg(&name);
    command.arg("--log-file").arg(directory.path().join("log"));
    command.arg("--dump").arg(directory.path().join("dump"));
    let running = Server::spawn(&mut command);
    assert!(
        running.first_line.starts_with("listening on "),
        "{}",
        running.first_line
    );
    assert_eq!(running.end(Signal::TERM).0, Some(0));

    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = in_a_namespace(SERVER);
    let output = command.arg("--pipe-name").arg(&name).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("does not map (shown as uid 65534)"), "{said}");
    assert!(!said.contains("belongs to another user"), "{said}");

    let elsewhere = unique_name();
    let mut command = in_a_namespace(SERVER);
    command.arg("--pipe-name").arg(&elsewhere.text);
    command.arg("--log-file").arg(directory.path().join("log"));
    let said = stderr(&command.output().unwrap());
    assert!(said.contains("does not map (shown as uid 65534)"), "{said}");
}

#[test]
fn a_log_in_a_directory_of_an_unmapped_user_is_judged_as_a_socket_is() {
    if !can_run_as_nobody() || !has_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    chown(path, Some(NOBODY - 1), None).unwrap();
    let name = unique_name();
    let start = |mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = in_a_namespace(SERVER);
        command.args(["--pipe-name", &name.text, "--log-file"]);
        Server::spawn(command.arg(path.join("log")))
    };
    let running = start(0o1777);
    assert!(
        running.first_line.starts_with("listening on "),
        "{}",
        running.log().wait_for("")
    );
    assert_eq!(running.end(Signal::TERM).0, Some(0));
    let said = start(0o755).log().wait_for("");
    assert!(said.contains("does not map (shown as uid 65534)"), "{said}");
    assert!(!said.contains("belongs to another user"), "{said}");
}

#[test]
fn an_unmapped_server_is_trusted_by_nobody_in_particular() {
    if !can_run_as_nobody() || !has_namespaces() {
        return;
    }
    let name = unique_name();
    let directory = Path::new(&name.text).parent().unwrap();
    chown(directory, Some(NOBODY - 1), None).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = server(&name.text);
    let _server = Server::spawn(command.args(["--access", "everyone"]).uid(NOBODY - 1));
    let ask = |trust: &[&str]| -> Output {
        let mut command = in_a_namespace(env!("CARGO_BIN_EXE_pipe-client"));
        let arguments = command.args(["--pipe-name", &name.text, "hello"]);
        arguments.args(trust).output().unwrap()
    };
    for trust in [&[][..], &["--trust", "65534"]] {
        let output = ask(trust);
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains("does not map (shown as user 65534)"),
            "{said}"
        );
        assert!(said.contains("--trust anyone"), "{said}");
        assert!(!said.contains("--trust 65534"), "{said}");
    }
    let output = ask(&["--trust", "anyone"]);
    assert_eq!(output.stdout, b"hello\n", "{output:?}");
}
