//! Names on Linux: the files of a pipe.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::Signal,
};
use support::unique_name;

use crate::program::{Server, stderr};

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
