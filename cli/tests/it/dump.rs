//! `pipe-server --dump`.

use std::{fs, io::BufRead as _, path::PathBuf, process::Stdio};

use pipe_server::{Client, PipeListener};
use serde_json::Value;
use support::{in_time, unique_name};
use tempfile::TempDir;

use crate::program::{Server, server};

/// A directory for the file of a dump.
pub(crate) struct DumpFile {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

impl DumpFile {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dump");
        Self {
            _directory: directory,
            path,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Waits until it has so many lines, and returns them.
    pub(crate) async fn lines(&self, count: usize) -> Vec<String> {
        loop {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            if text.lines().count() >= count && text.ends_with('\n') {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The rest of a line after its time.
fn after_time(line: &str) -> &str {
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{line}");
    rest
}

#[tokio::test]
async fn each_message_is_a_line_of_text() {
    in_time(async {
        let file = DumpFile::new();
        let name = unique_name();
        let _server = Server::start(&name, &["--echo", "--dump", file.name()]);
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap();
        client.call("a\x1b[2J\n\u{202e}b").await.unwrap();
        client.call(&b"\xff\0"[..]).await.unwrap();
        let mut other = Client::connect(&name.text).await.unwrap();
        other.call("grüße").await.unwrap();

        let lines = file.lines(8).await;
        let said: Vec<&str> = lines.iter().map(|line| after_time(line)).collect();
        let expected = [
            ("#1", "5 bytes: hello"),
            ("#1", r"10 bytes: a\u{1b}[2J\n\u{202e}b"),
            ("#1", r"2 bytes: \xff\u{0}"),
            ("#2", "7 bytes: grüße"),
        ];
        let expected = expected.iter().flat_map(|(connection, message)| {
            ['>', '<'].map(|arrow| format!("{connection} {arrow} {message}"))
        });
        assert_eq!(said, expected.collect::<Vec<_>>());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;

            let mode = fs::metadata(&file.path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    })
    .await;
}

#[tokio::test]
async fn hexadecimal_and_how_much_of_a_message_can_be_chosen() {
    in_time(async {
        let file = DumpFile::new();
        let name = unique_name();
        let arguments = [
            "--dump",
            file.name(),
            "--dump-format",
            "hex",
            "--dump-bytes",
            "3",
        ];
        let _server = Server::start(&name, &[&arguments[..], &["--reply", "ok"]].concat());
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap();
        let lines = file.lines(2).await;
        assert_eq!(after_time(&lines[0]), "#1 > 5 bytes: 68 65 6c (+2 bytes)");
        assert_eq!(after_time(&lines[1]), "#1 < 2 bytes: 6f 6b");
    })
    .await;
}

#[tokio::test]
async fn on_stdout_the_address_comes_first() {
    in_time(async {
        let name = unique_name();
        let mut server = Server::start(&name, &["--dump", "-", "--dump-format", "json"]);
        assert!(server.first_line.starts_with("listening on "));
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap();
        let mut line = String::new();
        server.stdout.read_line(&mut line).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        for (key, value) in [
            ("connection", Value::from(1)),
            ("number", 1.into()),
            ("from", "client".into()),
            ("bytes", 5.into()),
            ("text", "hello".into()),
        ] {
            assert_eq!(message[key], value, "{line}");
        }
        line.clear();
        server.stdout.read_line(&mut line).unwrap();
        assert!(line.contains(r#""number":2,"from":"server""#), "{line}");
    })
    .await;
}

#[tokio::test]
async fn forwarded_messages_are_recorded_in_their_order() {
    in_time(async {
        let file = DumpFile::new();
        let (name, server_name) = (unique_name(), unique_name());
        let mut target = PipeListener::bind(&server_name.text).unwrap();
        let forward = format!("pipe:{}", server_name.text);
        let _server = Server::start(&name, &["--forward", &forward, "--dump", file.name()]);
        let mut client = Client::connect(&name.text).await.unwrap();
        let mut connection = target.accept().await.unwrap();
        for message in ["unasked", "again"] {
            connection.send(message).await.unwrap();
            assert_eq!(client.recv().await.unwrap().unwrap(), message);
        }
        client.send("request").await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "request");
        connection.send("reply").await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), "reply");
        let lines = file.lines(4).await;
        let said: Vec<&str> = lines.iter().map(|line| after_time(line)).collect();
        let expected = [
            "#1 < 7 bytes: unasked",
            "#1 < 5 bytes: again",
            "#1 > 7 bytes: request",
            "#1 < 5 bytes: reply",
        ];
        assert_eq!(said, expected);
    })
    .await;
}

/// The first command ends only after the server has noticed the end of the second one.
#[cfg(unix)]
#[tokio::test]
async fn replies_that_wait_for_an_earlier_one_are_recorded_when_they_are_given() {
    in_time(async {
        let file = DumpFile::new();
        let done = file.path.with_extension("done");
        let command = format!(
            "read line; if test $line = 1; then until test -s '{0}'; do :; done; \
             while kill -0 $(cat '{0}'); do :; done; else echo $$ > '{0}'; fi; echo $line",
            done.display()
        );
        let name = unique_name();
        let arguments = ["--concurrency", "2", "--exec", &command, "--trim-newline"];
        let dump = ["--dump", file.name()];
        let _server = Server::start(&name, &[&arguments[..], &dump].concat());
        let mut client = Client::connect(&name.text).await.unwrap();
        for request in ["1\n", "2\n"] {
            client.send(request).await.unwrap();
        }
        for reply in ["1", "2"] {
            assert_eq!(client.recv().await.unwrap().unwrap(), reply);
        }
        let lines = file.lines(4).await;
        let said: Vec<&str> = lines.iter().map(|line| after_time(line)).collect();
        let expected = [
            r"#1 > 2 bytes: 1\n",
            r"#1 > 2 bytes: 2\n",
            "#1 < 1 bytes: 1",
            "#1 < 1 bytes: 2",
        ];
        assert_eq!(said, expected);
    })
    .await;
}

#[tokio::test]
async fn a_dump_that_nobody_reads_slows_no_client_and_loses_messages_that_are_counted() {
    /// Twice as much as waits to be written, in hexadecimal.
    const CALLS: u64 = 300;

    let name = unique_name();
    let arguments = ["--echo", "--dump", "-", "--dump-format", "json"];
    let mut server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    in_time(async {
        let request = vec![0xff; 64 * 1024];
        let mut client = Client::connect(&name.text).await.unwrap();
        for _ in 0..CALLS {
            assert_eq!(client.call(request.clone()).await.unwrap(), request);
        }
    })
    .await;

    // Read at last, it says what is missing, and goes on.
    let (mut messages, mut missing) = (0, 0);
    let mut line = String::new();
    while messages + missing < 2 * CALLS {
        line.clear();
        server.stdout.read_line(&mut line).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        match value["lost"].as_u64() {
            Some(lost) => missing += lost,
            None => {
                messages += 1;
                assert_eq!(value["number"], messages + missing, "{line}");
            }
        }
    }
    assert!(missing > 0 && messages > 0, "{missing} of {messages}");
    server.log().wait_for("messages are missing in the dump");
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap();
    })
    .await;
    line.clear();
    server.stdout.read_line(&mut line).unwrap();
    assert!(line.contains("hello"), "{line}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dump_that_nobody_reads_does_not_keep_the_server_from_ending() {
    let name = unique_name();
    let server = Server::start(&name, &["--echo", "--dump", "-"]);
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        for _ in 0..10 {
            client.call(vec![b'x'; 64 * 1024]).await.unwrap();
        }
    })
    .await;
    assert_eq!(server.end(rustix::process::Signal::TERM).0, Some(0));
}

/// What a server says that does not start with `path` as its dump.
#[cfg(unix)]
fn refusal(path: &std::path::Path) -> String {
    let name = unique_name();
    let mut command = server(&name, &["--dump", path.to_str().unwrap()]);
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    crate::program::stderr(&output)
}

#[cfg(unix)]
#[test]
fn a_fifo_without_a_reader_is_refused_and_not_waited_for() {
    use rustix::fs::{CWD, Mode};

    let file = DumpFile::new();
    rustix::fs::mkfifoat(CWD, &file.path, Mode::RUSR | Mode::WUSR).unwrap();
    let said = refusal(&file.path);
    assert!(said.contains("--dump -"), "{said}");
    // One with a reader, too: it could stop reading.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let _reader = rustix::fs::open(&file.path, flags, Mode::empty()).unwrap();
    let said = refusal(&file.path);
    assert!(said.contains("--dump -"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let file = DumpFile::new();
    fs::write(&file.path, "from before\n").unwrap();
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o644)).unwrap();
    let said = refusal(&file.path);
    assert!(said.contains("chmod 600"), "{said}");
    assert_eq!(fs::read_to_string(&file.path).unwrap(), "from before\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_of_another_user_is_refused_wherever_it_is() {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can make files of another user");
        return;
    }
    let file = DumpFile::new();
    fs::write(&file.path, "").unwrap();
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file.path, Some(12_345), None).unwrap();
    let said = refusal(&file.path);
    assert!(said.contains("another user (uid 12345)"), "{said}");
}

#[tokio::test]
async fn a_file_that_is_full_is_begun_anew() {
    in_time(async {
        let file = DumpFile::new();
        let old = file.path.with_extension("1");
        let name = unique_name();
        let arguments = ["--echo", "--dump-size", "1KiB", "--dump", file.name()];
        let _server = Server::start(&name, &arguments);
        let mut client = Client::connect(&name.text).await.unwrap();
        while !old.exists() {
            client.call("hello").await.unwrap();
        }
        let text = fs::read_to_string(&old).unwrap();
        assert!(text.len() <= 1024 && text.ends_with("hello\n"), "{text}");
    })
    .await;
}
