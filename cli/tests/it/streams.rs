//! Standard streams as a parent may leave them: nonblocking, full, closed by their reader.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    thread,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use support::{UniqueName, unique_name};

use crate::program::{Server, ended, run_client, server};

/// More than any pipe holds.
const LONG: usize = 1 << 20;

pub(crate) const PROGRAMS: &[&str] = &[
    env!("CARGO_BIN_EXE_pipe-server"),
    env!("CARGO_BIN_EXE_pipe-client"),
    env!("CARGO_BIN_EXE_pipe-list"),
    #[cfg(feature = "bench")]
    env!("CARGO_BIN_EXE_pipe-bench"),
];

/// The two ends of a pipe, reader first. No process of another test inherits them.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// The same, and neither end blocks.
fn nonblocking_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe();
    for end in [&reader, &writer] {
        set_blocking(end, false);
    }
    (reader, writer)
}

fn set_blocking(stream: impl AsFd, blocking: bool) {
    let mut flags = fcntl_getfl(&stream).unwrap();
    flags.set(OFlags::NONBLOCK, !blocking);
    fcntl_setfl(&stream, flags).unwrap();
}

/// Fills a pipe, so that the next write would block.
fn fill(writer: &OwnedFd) -> usize {
    let size = rustix::pipe::fcntl_getpipe_size(writer).unwrap();
    let mut file = File::from(writer.try_clone().unwrap());
    file.write_all(&vec![b'x'; size]).unwrap();
    size
}

/// What a reader that comes late finds in a pipe.
fn read_all(reader: OwnedFd) -> Vec<u8> {
    set_blocking(&reader, true);
    let mut contents = Vec::new();
    File::from(reader).read_to_end(&mut contents).unwrap();
    contents
}

#[test]
fn a_client_waits_for_a_nonblocking_stdin_and_stdout() {
    let name = unique_name();
    let long = LONG.to_string();
    let _server = Server::start(&name, &["--echo", "--max-message-size", &long]);
    for arguments in [&["--raw"][..], &["--raw", "--file", "-"]] {
        let (stdin, lines) = nonblocking_pipe();
        let (replies, stdout) = nonblocking_pipe();
        let filled = fill(&stdout);
        let mut client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .args(["--pipe-name", &name.text, "--max-message-size", &long])
            .args(arguments)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let message = vec![b'm'; 190_000];
        let sent = message.clone();
        let writer = thread::spawn(move || {
            set_blocking(&lines, true);
            File::from(lines).write_all(&sent).unwrap();
        });
        // Its end of stdin is found only after it has waited.
        writer.join().unwrap();
        let mut read = read_all(replies).split_off(filled);
        read.truncate(message.len() + 1);
        let mut complaint = client.stderr.take().unwrap();
        let (code, said) = ended(&mut client, &mut complaint);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        assert_eq!(read.len(), message.len());
        assert!(read == message);
    }
}

#[test]
fn help_waits_for_a_nonblocking_stdout() {
    for program in PROGRAMS {
        for option in ["--help", "--version", "--generate=bash"] {
            let (reader, stdout) = nonblocking_pipe();
            let filled = fill(&stdout);
            let mut child = Command::new(program)
                .arg(option)
                .stdout(stdout)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let printed = read_all(reader).split_off(filled);
            let mut complaint = child.stderr.take().unwrap();
            let (code, said) = ended(&mut child, &mut complaint);
            assert_eq!((code, said.as_str()), (Some(0), ""), "{program} {option}");
            let blocking = Command::new(program).arg(option).output().unwrap();
            assert!(printed == blocking.stdout, "{program} {option}");
        }
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    for program in PROGRAMS {
        for option in ["--help", "-h", "--version", "--generate=man"] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let output = Command::new(program)
                .arg(option)
                .stdout(full)
                .output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{program} {option}: {said}");
            assert!(said.contains("can't write to stdout"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

/// As in `pipe-server --help | head -n 1`.
#[test]
fn a_reader_of_the_help_that_has_left_is_no_failure() {
    for program in PROGRAMS {
        let (reader, stdout) = pipe();
        drop(reader);
        let output = Command::new(program)
            .arg("--help")
            .stdout(stdout)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn the_log_waits_for_a_nonblocking_stderr() {
    let name = unique_name();
    let (log, stderr) = nonblocking_pipe();
    let filled = fill(&stderr);
    let mut command = server(&name, &["--echo"]);
    let server = Server::spawn(command.stderr(stderr));
    // The server's are the only ones left.
    drop(command);
    set_blocking(&log, true);
    let mut log = File::from(log);
    let mut contents = vec![0; filled];
    log.read_exact(&mut contents).unwrap();
    assert_eq!(server.end(Signal::TERM).0, Some(0));
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("listening"), "{lines}");
    assert!(!lines.contains("dropped"), "{lines}");
}

/// What `pipe-client` shows on a terminal.
fn shown(name: &UniqueName, arguments: &[&str]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    fcntl_setfd(&terminal, FdFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let side = File::options().write(true).open(path.to_str().unwrap());
    let mut client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .stdout(side.unwrap())
        .spawn()
        .unwrap();
    let (mut shown, mut part) = (Vec::new(), [0; 1024]);
    let mut terminal = File::from(terminal);
    // Until the client has closed it.
    while let Ok(length @ 1..) = terminal.read(&mut part) {
        shown.extend_from_slice(&part[..length]);
    }
    assert!(client.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

#[test]
fn a_reply_can_not_control_the_terminal_unless_asked() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let reply = "a\tb\nc\x1b[2J\u{9b}\u{202e}\rd";
    let escaped = "a\tb\r\nc\\u{1b}[2J\\u{9b}\\u{202e}\\rd";
    assert_eq!(shown(&name, &[reply]), format!("{escaped}\r\n"));
    assert_eq!(shown(&name, &["--nul", reply]), format!("{escaped}\0"));
    // The terminal alone turns a newline into two characters.
    assert_eq!(shown(&name, &["--raw", reply]), reply.replace('\n', "\r\n"));

    // Elsewhere it is printed as it is.
    let output = run_client(&name, &[reply], "");
    assert_eq!(output.stdout, format!("{reply}\n").as_bytes());
}

#[test]
fn a_result_of_json_rpc_at_a_terminal_stays_json() {
    let name = unique_name();
    let result = "[\"\u{9b}\u{202e}\",\r\n\t1\r]";
    let response = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
    let _server = Server::start(&name, &["--reply", &response]);
    let shown = shown(&name, &["--rpc", "x"]);
    assert!(!shown.contains('\u{9b}'), "{shown:?}");
    let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(json, serde_json::json!(["\u{9b}\u{202e}", 1]), "{shown:?}");

    let output = run_client(&name, &["--rpc", "x"], "");
    assert_eq!(output.stdout, format!("{result}\n").as_bytes());
}
