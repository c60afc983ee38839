//! The log of `pipe-server` on stderr and in a file.

use std::{env, fs, process::Stdio};

use pipe_server::Client;
use support::{in_time, unique_name};

use crate::program::{Server, ended, server};

/// With `-vv` they log more than a pipe and the log's queue hold.
pub(crate) const MANY_REQUESTS: usize = 6_000;

pub(crate) async fn echo(client: &mut Client, requests: usize) {
    for _ in 0..requests {
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_blocks_no_client() {
    in_time(async {
        let name = unique_name();
        let server = Server::spawn(server(&name, &["--echo", "-vv"]).stderr(Stdio::piped()));
        let mut client = Client::connect(&name.text).await.unwrap();
        echo(&mut client, MANY_REQUESTS).await;

        // Read at last, the log says what is missing, and goes on.
        let notice = server.log().wait_for("log lines were dropped");
        let (_, dropped) = notice.split_once("lines=").unwrap();
        assert!(dropped.parse::<u64>().unwrap() > 0, "{notice}");
        echo(&mut client, 1).await;
        server.log().wait_for("TRACE");
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_the_server_from_ending() {
    use crate::program::ending_signals;

    for signal in ending_signals() {
        let name = unique_name();
        let server = Server::spawn(server(&name, &["--echo", "-vv"]).stderr(Stdio::piped()));
        in_time(async {
            let mut client = Client::connect(&name.text).await.unwrap();
            echo(&mut client, MANY_REQUESTS).await;
        })
        .await;
        assert_eq!(server.end(signal).0, Some(0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_stdout_that_nobody_reads_blocks_neither_clients_nor_the_end() {
    use std::{fs::File, io::Write as _};

    use pipe_server::ClientOptions;
    use rustix::process::{Pid, Signal};
    use support::DEADLINE;

    let (unread, full) = rustix::pipe::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&full).unwrap();
    let full = File::from(full);
    (&full).write_all(&vec![b'x'; size]).unwrap();

    let name = unique_name();
    let mut server = server(&name, &["--echo"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    in_time(async {
        let options = ClientOptions::new()
            .wait_for_server(true)
            .connect_timeout(DEADLINE);
        let mut client = options.connect(&name.text).await.unwrap();
        echo(&mut client, 1).await;
    })
    .await;
    rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let mut log = server.stderr.take().unwrap();
    assert_eq!(ended(&mut server, &mut log).0, Some(0));
    drop(unread);
}

#[tokio::test]
async fn a_log_file_is_appended_to_and_stderr_stays_empty() {
    let name = unique_name();
    let file = format!("{}.log", name.text.replace(['/', '\\'], "-"));
    let path = env::temp_dir().join(file);
    let path_text = path.to_str().unwrap();
    fs::write(&path, "from before\n").unwrap();
    let mut command = server(&name, &["--echo", "-v", "--log-file", path_text]);
    let mut server = Server::spawn(command.stderr(Stdio::piped()));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        echo(&mut client, 1).await;
        drop(client);
        while !fs::read_to_string(&path).unwrap().contains("listening") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.child.kill().unwrap();
    let mut stderr = server.stderr();
    let (_, printed) = ended(&mut server.child, &mut stderr);
    assert_eq!(printed, "");
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.starts_with("from before\n"), "{log}");
    fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_log_file_that_is_full_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let old = directory.path().join("log.1");
    let name = unique_name();
    let file = ["--log-file", path.to_str().unwrap()];
    let arguments = [&file[..], &["--log-file-size", "4KiB", "--echo", "-vv"]].concat();
    let mut server = Server::spawn(&mut server(&name, &arguments));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        while !old.exists() {
            echo(&mut client, 1).await;
        }
    })
    .await;
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    for path in [path, old] {
        // The server may have been killed after it renamed one and before it began the other.
        let log = fs::read_to_string(&path).unwrap_or_default();
        assert!(log.len() <= 4096, "{}", log.len());
        // Each line begins with its time.
        assert!(log.lines().all(|line| line.starts_with("20")), "{log}");
        assert!(log.is_empty() || log.ends_with('\n'), "{log}");
    }
}

#[test]
fn a_log_file_that_can_not_be_opened_is_named() {
    let name = unique_name();
    let directory = env::temp_dir();
    let directory = directory.to_str().unwrap();
    let output = server(&name, &["--log-file", directory])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        line.contains(&format!("--log-file: can't open {directory}")),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
}

/// The line of the log about a command of `--exec` that complains and fails.
async fn line_about(command: &str, arguments: &[&str]) -> String {
    let name = unique_name();
    let arguments = [arguments, &["--exec", command]].concat();
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap_err();
    })
    .await;
    server.log().wait_for("complaint")
}

#[tokio::test]
async fn a_command_can_not_forge_lines_of_the_log() {
    let (command, escaped) = match cfg!(windows) {
        true => (
            "echo complaint 1>&2 & echo forged 1>&2 & exit 3",
            r"\r\nforged",
        ),
        false => (
            r"printf 'complaint\nforged\r\033[2J\302\233\342\200\256' >&2; exit 3",
            r"complaint\nforged\r\u{1b}[2J\u{9b}\u{202e}",
        ),
    };
    let line = line_about(command, &[]).await;
    assert!(line.contains(escaped), "{line}");
}

#[cfg(unix)]
#[tokio::test]
async fn the_log_in_json_shows_no_terminal_what_it_should_not_see() {
    let command = r"printf 'complaint\n\033[2J\302\233\342\200\256' >&2; exit 3";
    let line = line_about(command, &["--log-format", "json"]).await;
    let escaped = r"complaint\n\u001b[2J\u009b\u202e";
    assert!(line.contains(escaped), "{line}");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
}

#[tokio::test]
async fn rust_log_takes_the_place_of_v_and_q() {
    in_time(async {
        let name = unique_name();
        let mut command = server(&name, &["--echo", "--quiet"]);
        command.env("RUST_LOG", "off,pipe_server=debug");
        let server = Server::spawn(command.stderr(Stdio::piped()));
        let mut client = Client::connect(&name.text).await.unwrap();
        echo(&mut client, 1).await;
        server.log().wait_for("DEBUG");
    })
    .await;
}

#[test]
fn a_rust_log_that_can_not_be_understood_is_a_failure_that_names_it() {
    for wrong in ["[connection]=debug", "pipe_server=debug=trace"] {
        let name = unique_name();
        let mut command = server(&name, &[]);
        let command = command.env("RUST_LOG", wrong).stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("RUST_LOG"), "{line}");
        assert!(line.contains("pipe_server=debug"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

/// The one line with which a server fails to start with this file for its log.
#[cfg(target_os = "linux")]
fn refused(path: &std::path::Path) -> String {
    let name = unique_name();
    let mut child = server(&name, &["--log-file", path.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (code, said) = ended(&mut child, &mut stderr);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    said
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_file_that_could_block_is_refused_at_the_start() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(refused(&path).contains("regular file"));
    // Also with a reader.
    let _reader = fs::File::options().read(true).write(true).open(&path);
    assert!(refused(&path).contains("regular file"));
    let path = directory.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(refused(&path).contains("regular file"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_file_may_be_a_device() {
    for device in ["/dev/null", "/dev/full"] {
        let name = unique_name();
        let server = Server::start(&name, &["--log-file", device]);
        assert_eq!(server.end(rustix::process::Signal::TERM).0, Some(0));
    }
}

/// Its owner could put a link to another file in the log's place.
#[cfg(target_os = "linux")]
#[test]
fn a_log_file_where_another_user_could_exchange_it_is_refused() {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let link = tempfile::tempdir().unwrap();
    let link_path = link.path().join("log");
    symlink(&path, &link_path).unwrap();
    let mode = |mode| {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o777);
    assert!(refused(&path).contains("chmod o-w"));
    assert!(refused(&link_path).contains("chmod o-w"));
    assert!(!path.exists());
    mode(0o1777);
    let name = unique_name();
    drop(Server::start(
        &name,
        &["--log-file", path.to_str().unwrap()],
    ));

    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can make files of another user");
        return;
    }
    // In such a directory anybody can have made it.
    chown(&path, Some(12_345), None).unwrap();
    assert!(refused(&path).contains("another user"));
    fs::remove_file(&path).unwrap();
    symlink(link.path().join("target"), &path).unwrap();
    std::os::unix::fs::lchown(&path, Some(12_345), None).unwrap();
    assert!(refused(&path).contains("another user"));
    fs::remove_file(&path).unwrap();
    mode(0o755);
    chown(directory.path(), Some(12_345), None).unwrap();
    assert!(refused(&path).contains("uid 12345"));
    assert!(!path.exists());
}

/// The line about a client that `server` refuses, and about one that breaks a rule.
async fn lines_about_clients(format: &str, level: &[&str]) -> [String; 2] {
    let line_of = async |arguments: &[&str], reason: &str| {
        let name = unique_name();
        let arguments = [arguments, &["--echo", "--log-format", format], level].concat();
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        in_time(async {
            let options = pipe_server::ClientOptions::new().max_message_size(11);
            let mut client = options.connect(&name.text).await.unwrap();
            _ = client.send("eleven byte").await;
            assert!(!matches!(client.recv().await, Ok(Some(_))));
        })
        .await;
        server.log().wait_for(reason)
    };
    [
        line_of(
            &["--allow-user", crate::program::OTHER_USER],
            "not_authorized",
        )
        .await,
        line_of(&["--max-message-size", "10"], "request_too_long").await,
    ]
}

#[tokio::test]
async fn a_line_says_who_is_meant_once() {
    let process = format!("peer.pid={}", std::process::id());
    let [refused, broken] = lines_about_clients("text", &[]).await;
    for (line, text) in [
        (&refused, "refusing the client"),
        (&broken, "closing the connection"),
    ] {
        assert!(line.contains(text), "{line}");
        for field in [&process, "peer.user=", "connection.id=1", "pipe.name="] {
            assert_eq!(line.matches(field).count(), 1, "{field}: {line}");
        }
    }
}

#[tokio::test]
async fn a_line_in_json_says_who_is_meant_once() {
    for line in lines_about_clients("json", &[]).await {
        for field in ["peer.pid", "peer.user", "connection.id", "pipe.name"] {
            let field = format!("\"{field}\":");
            assert_eq!(line.matches(&field).count(), 1, "{field}: {line}");
        }
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let connection = &line["spans"][0];
        assert_eq!(connection["peer.pid"], std::process::id(), "{line}");
        assert_eq!(connection["peer.user"].is_number(), cfg!(unix), "{line}");
        assert_eq!(line.get("span"), None, "{line}");
    }
}

/// Without its span, the line itself says which client it is about.
#[tokio::test]
async fn a_line_of_a_quiet_server_says_who_is_refused() {
    let name = unique_name();
    let arguments = ["--echo", "--allow-user", crate::program::OTHER_USER];
    let mut command = server(&name, &arguments);
    command.env("RUST_LOG", "pipe_server=warn");
    let server = Server::spawn(command.stderr(Stdio::piped()));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        _ = client.send("hello").await;
        assert!(!matches!(client.recv().await, Ok(Some(_))));
    })
    .await;
    let line = server.log().wait_for("not_authorized");
    let process = format!("peer.pid={}", std::process::id());
    for field in [&process, "peer.user=", "connection.id=1"] {
        assert_eq!(line.matches(field).count(), 1, "{field}: {line}");
    }
}
