//! `pipe-client`: what it sends and how it prints replies.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use pipe_server::PipeListener;
use support::{UniqueName, in_time, unique_name};
use tokio::task::spawn_blocking;

use crate::program::{OTHER_USER, Server, client, replies, run_client, stderr};

/// What a client prints that succeeds.
fn printed(name: &UniqueName, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run_client(name, arguments, input);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    output.stdout
}

/// Files that exist until it is dropped.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn new(name: &UniqueName) -> Self {
        let name = name.text.replace(['/', '\\'], "-");
        let directory = std::env::temp_dir().join(format!("files{name}"));
        fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    fn write(&self, name: &str, contents: &[u8]) -> String {
        let path = self.directory.join(name);
        fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// The requests that reach a server. Each is replied to with itself.
async fn requests_of(arguments: &[&'static str], input: &'static [u8]) -> Vec<Vec<u8>> {
    let name = unique_name();
    let mut listener = PipeListener::bind(&name.text).unwrap();
    let arguments = arguments.to_owned();
    let running = spawn_blocking(move || printed(&name, &arguments, input));
    let mut requests = Vec::new();
    in_time(async {
        let mut connection = listener.accept().await.unwrap();
        while let Some(request) = connection.recv().await.unwrap() {
            requests.push(request.to_vec());
            connection.send(request).await.unwrap();
        }
    })
    .await;
    running.await.unwrap();
    requests
}

#[test]
fn hexadecimal_messages_are_bytes_and_so_are_replies() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let messages = ["--hex", "00ff 0A", "C3"];
    assert_eq!(printed(&name, &messages, b""), b"00ff0a\nc3\n");
    assert_eq!(printed(&name, &["--hex"], b"00 00\r\nfe\n"), b"0000\nfe\n");
    for (wrong, said, code) in [
        ("0", "Odd number of digits", 2),
        ("xy", "not hexadecimal", 2),
        (" ", "is empty", 2),
    ] {
        let output = run_client(&name, &["--hex", "00", wrong], b"");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(stderr(&output).contains(said), "{output:?}");
        // Not even the message before.
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    let output = run_client(&name, &["--hex"], b"00\nxy\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("line 2 of stdin is not hexadecimal"));
}

#[test]
fn a_line_in_hexadecimal_may_be_as_long_as_a_message() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let limit = ["--hex", "--max-message-size", "4"];
    assert_eq!(printed(&name, &limit, b"01 02 03 04\n"), b"01020304\n");
    let output = run_client(&name, &limit, b"0102030405\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("--max-message-size"), "{output:?}");
}

#[test]
fn raw_replies_are_printed_unchanged() {
    let name = unique_name();
    let files = Files::new(&name);
    let _server = Server::start(&name, &["--echo"]);
    let bytes: Vec<u8> = (0..=255).collect();
    let file = files.write("bytes", &bytes);
    assert_eq!(printed(&name, &["--raw", "--file", &file], b""), bytes);
    assert_eq!(printed(&name, &["--raw", "--file", "-"], &bytes), bytes);
    assert_eq!(printed(&name, &["--raw", "a", "b"], b""), b"ab");
}

#[test]
fn a_file_is_one_message_whatever_is_in_it() {
    let name = unique_name();
    let files = Files::new(&name);
    let _server = Server::start(&name, &["--echo"]);
    let first = files.write("first", b"a\nb\0\xff\r\n");
    let second = files.write("second", b"\0");
    let both = ["--hex", "--file", &first, "--file", &second];
    assert_eq!(printed(&name, &both, b"not read"), b"610a6200ff0d0a\n00\n");
}

#[test]
fn nothing_is_sent_if_a_file_can_not_be() {
    let name = unique_name();
    let files = Files::new(&name);
    let _server = Server::start(&name, &["--echo", "--max-message-size", "1MiB"]);
    let good = files.write("good", &[b'x'; 65_536]);
    assert_eq!(
        printed(&name, &["--raw", "--file", &good], b"").len(),
        65_536
    );
    let long = files.write("long", &[b'x'; 65_537]);
    let empty = files.write("empty", b"");
    let missing = files.directory.join("missing");
    for (file, said) in [
        (
            long.as_str(),
            &[&long, "65537 bytes", "65536", "--max-message-size"][..],
        ),
        (&empty, &[&empty, "empty"]),
        (missing.to_str().unwrap(), &["can't read", "missing"]),
        ("-", &["stdin is empty"]),
    ] {
        let output = run_client(&name, &["--file", &good, "--file", file], b"");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{file}");
        let line = stderr(&output);
        for part in said {
            assert!(line.contains(part), "{line}");
        }
    }
    // Its length is not known before it ends.
    let output = run_client(&name, &["--max-message-size", "3", "--file", "-"], b"1234");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("more than 3 bytes"), "{output:?}");
}

#[test]
fn with_nul_lines_and_replies_end_with_nul() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    assert_eq!(
        printed(&name, &["--nul"], b"one\nline\r\0\xff\0last"),
        b"one\nline\r\0\xff\0last\0"
    );
    assert_eq!(
        printed(&name, &["--nul", "--encoding", "utf-16", "grüße"], b""),
        "grüße\0".as_bytes()
    );
}

#[test]
fn json_tells_replies_apart() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let output = printed(&name, &["--json", "--terminator", "nul"], b"a\n\xff\n");
    let lines = String::from_utf8(output).unwrap();
    let (first, second) = lines.trim_end().split_once('\n').unwrap();
    let start = r#"{"number":1,"bytes":2,"text":"a","latency_us":"#;
    assert!(first.starts_with(start), "{first}");
    let start = r#"{"number":2,"bytes":2,"hex":"ff00","latency_us":"#;
    assert!(second.starts_with(start), "{second}");
    let hex = printed(&name, &["--json", "--hex", "61"], b"");
    let start = br#"{"number":1,"bytes":1,"hex":"61","latency_us":"#;
    assert!(hex.starts_with(start), "{hex:?}");
}

#[tokio::test]
async fn each_message_is_sent_as_often_as_asked() {
    let arguments = ["--repeat", "3", "a", "b"];
    let requests = requests_of(&arguments, b"").await;
    assert_eq!(requests, [b"a", b"a", b"a", b"b", b"b", b"b"]);
    let requests = requests_of(&["--repeat", "2"], b"a\n").await;
    assert_eq!(requests, [b"a", b"a"]);
}

#[tokio::test]
async fn text_ends_with_nul_in_its_encoding_if_asked() {
    for (arguments, request) in [
        (&["a"][..], &b"a"[..]),
        (&["--terminator", "nul", "a"], b"a\0"),
        (&["--terminator", "none", "a"], b"a"),
        (&["--encoding", "utf-16", "a"], b"a\0\0\0"),
        (
            &["--encoding", "utf-16", "--terminator", "nul", "a"],
            b"a\0\0\0",
        ),
        (
            &["--encoding", "utf-16", "--terminator", "none", "a"],
            b"a\0",
        ),
    ] {
        let requests = requests_of(arguments, b"").await;
        assert_eq!(requests, [request], "{arguments:?}");
    }
}

#[test]
fn options_that_contradict_each_other_are_bad_usage() {
    let name = unique_name();
    for arguments in [
        &["--hex", "--raw", "00"][..],
        &["--hex", "--nul", "00"],
        &["--hex", "--terminator", "nul", "00"],
        &["--hex", "--encoding", "utf-16", "00"],
        &["--raw", "--json", "a"],
        &["--raw", "--nul", "a"],
        &["--json", "--nul", "a"],
        &["--ping", "--raw"],
        &["--ping", "--nul"],
        &["--file", "-", "a"],
        &["--file", "-", "--terminator", "nul"],
        &["--repeat", "0", "a"],
    ] {
        let output = run_client(&name, arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

/// As in `pipe-client | head -n 1`.
#[test]
fn a_reader_that_has_seen_enough_ends_the_client_quietly() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for arguments in [&[][..], &["--raw"], &["--json"], &["--hex"]] {
        let arguments = [arguments, &["--repeat", "1000000", "aa"]].concat();
        let mut child = client(&name, &arguments).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn lines_of_stdin_are_messages_and_empty_ones_are_left_out() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let output = run_client(&name, &[], "one\n\ntwo\n");
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
        let output = run_client(&name, arguments, line);
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

#[tokio::test]
async fn a_server_that_leaves_ends_a_client_that_waits_for_stdin() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let mut child = client(&name, &[]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hello\n").unwrap();
        let mut connection = listener.accept().await.unwrap();
        let request = connection.recv().await.unwrap().unwrap();
        connection.send(request).await.unwrap();
        drop((connection, listener));
        // Its stdin is still open.
        let output = spawn_blocking(move || child.wait_with_output().unwrap());
        let output = output.await.unwrap();
        drop(stdin);
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        assert!(
            stderr(&output).contains("closed the connection"),
            "{output:?}"
        );
        assert_eq!(output.stdout.trim_ascii(), b"hello");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_leaves_after_the_last_reply_is_no_failure() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        for _ in 0..10 {
            let child = client(&name, &[]).stdin(Stdio::piped()).spawn();
            let mut child = child.unwrap();
            child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
            let mut connection = listener.accept().await.unwrap();
            let request = connection.recv().await.unwrap().unwrap();
            connection.send(request).await.unwrap();
            drop(connection);
            let output = spawn_blocking(move || child.wait_with_output().unwrap());
            let output = output.await.unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    })
    .await;
}

/// What comes before the first request counts as its reply, as ever.
#[tokio::test]
async fn a_message_that_comes_early_is_the_next_reply() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let mut child = client(&name, &[]).spawn().unwrap();
        let mut connection = listener.accept().await.unwrap();
        for text in ["welcome", "one", "two"] {
            connection.send(text).await.unwrap();
        }
        let mut stdin = child.stdin.take().unwrap();
        for line in ["a", "b", "c"] {
            stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
            assert_eq!(connection.recv().await.unwrap().unwrap(), line);
        }
        drop(stdin);
        let output = spawn_blocking(move || child.wait_with_output().unwrap());
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            printed.lines().collect::<Vec<_>>(),
            ["welcome", "one", "two"]
        );
    })
    .await;
}

#[test]
fn a_server_that_is_not_trusted_is_sent_nothing_and_named() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let output = run_client(&name, &["--trust", OTHER_USER, "hello"], "");
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

/// Another user could put a socket of its own, or a link to another server of this user, into such
/// a directory.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_of_short_names_that_another_user_could_fill_is_not_used() {
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

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
    assert!(said.contains("belongs to user 12345"), "{said}");
    assert!(said.contains("use --trust 12345"), "{said}");
    let (code, said) = client("12345");
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("nobody serves"), "{said}");
}

/// Another machine gets this user's credentials, and so does whoever answers to its name.
#[cfg(windows)]
#[test]
fn another_machine_is_asked_only_if_allowed() {
    let mut remote = unique_name();
    remote.text = format!(r"\\localhost\pipe\{}", remote.text);
    let output = run_client(&remote, &["hello"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("use --allow-remote"), "{output:?}");
    // Nobody serves it there.
    let output = run_client(&remote, &["--allow-remote", "hello"], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr(&output).contains("nobody serves"), "{output:?}");
}
