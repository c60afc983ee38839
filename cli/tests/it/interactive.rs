//! `pipe-client --interactive` at a terminal.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use pipe_server::PipeListener;
use rustix::{
    fs::{CWD, Mode, mkfifoat},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use support::{DEADLINE, UniqueName, in_time, unique_name};

use crate::program::Server;

const UP: &str = "\x1b[A";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

/// What a terminal is asked and answers (*Device Status Report*).
const WHERE_IS_THE_CURSOR: &str = "\x1b[6n";
const IN_THE_FIRST_ROW: &[u8] = b"\x1b[1;1R";

/// A client at a terminal.
struct Terminal {
    client: Child,
    keyboard: File,
    screen: mpsc::Receiver<String>,
    /// What has been shown and not been waited for.
    shown: String,
}

impl Terminal {
    fn start(name: &UniqueName, arguments: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap();
        let side = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path.to_str().unwrap())
            .unwrap();
        let client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .args(["--pipe-name", &name.text, "--interactive"])
            .args(arguments)
            .env("TERM", "xterm")
            .stdin(side.try_clone().unwrap())
            .stdout(side.try_clone().unwrap())
            .stderr(side)
            .spawn()
            .unwrap();
        let keyboard = File::from(terminal);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let shown = String::from_utf8_lossy(&buffer[..length]).into_owned();
                for _ in shown.matches(WHERE_IS_THE_CURSOR) {
                    reader.write_all(IN_THE_FIRST_ROW).unwrap();
                }
                _ = sender.send(shown);
            }
        });
        Self {
            client,
            keyboard,
            screen,
            shown: String::new(),
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, after what was waited for before.
    fn wait_for(&mut self, text: &str) {
        loop {
            if let Some(index) = self.shown.find(text) {
                self.shown.drain(..index + text.len());
                return;
            }
            match self.screen.recv_timeout(DEADLINE) {
                Ok(more) => self.shown += &more,
                Err(error) => panic!("no {text:?} ({error}), but {:?}", self.shown),
            }
        }
    }

    /// Its exit code.
    fn ended(mut self) -> Option<i32> {
        // Until the terminal is closed.
        while self.screen.recv_timeout(DEADLINE).is_ok() {}
        self.client.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.client.kill();
    }
}

#[test]
fn lines_are_messages_until_ctrl_d() {
    let name = unique_name();
    let _server = Server::start(&name, &["--reply", "the answer"]);
    let mut terminal = Terminal::start(&name, &[]);
    for _ in 0..2 {
        terminal.wait_for("> ");
        terminal.press("hello\r");
        terminal.wait_for("the answer\r\n");
    }
    terminal.wait_for("> ");
    terminal.press(CTRL_D);
    assert_eq!(terminal.ended(), Some(0));
}

#[test]
fn a_line_that_can_not_be_sent_is_no_end() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let mut terminal = Terminal::start(&name, &["--hex", "--max-message-size", "2"]);
    for (line, shown) in [
        ("xyz", "is not hexadecimal"),
        ("616263", "--max-message-size"),
        ("61", "61\r\n"),
    ] {
        terminal.wait_for("> ");
        // The line before it is discarded.
        terminal.press("zz");
        terminal.press(CTRL_C);
        // The prompt before it may be drawn again.
        terminal.wait_for("\r\n");
        terminal.wait_for("> ");
        terminal.press(line);
        terminal.press("\r");
        terminal.wait_for(shown);
    }
    terminal.wait_for("> ");
    terminal.press(CTRL_D);
    assert_eq!(terminal.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sends_unasked_is_shown_at_once_and_so_is_its_end() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let mut terminal = Terminal::start(&name, &[]);
        let mut connection = listener.accept().await.unwrap();
        terminal.wait_for("> ");
        for news in ["first news", "second news", "third news"] {
            connection.send(news).await.unwrap();
        }
        terminal.wait_for("first news");
        terminal.wait_for("third news");
        terminal.wait_for("> ");

        // What was being typed is kept.
        terminal.press("hel");
        terminal.wait_for("hel");
        connection.send("more news").await.unwrap();
        terminal.wait_for("more news");
        terminal.press("lo\r");
        assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
        connection.send("the answer").await.unwrap();
        terminal.wait_for("the answer");
        terminal.wait_for("> ");

        drop((connection, listener));
        terminal.wait_for("closed the connection");
        assert_eq!(terminal.ended(), Some(6));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_can_not_control_the_terminal() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let mut terminal = Terminal::start(&name, &[]);
        let mut connection = listener.accept().await.unwrap();
        terminal.wait_for("> ");
        connection.send("news \x1b]0;title\x07").await.unwrap();
        terminal.wait_for(r"news \u{1b}]0;title\u{7}");
        terminal.press("hello\r");
        connection.recv().await.unwrap().unwrap();
        connection.send("a\tb\r\nc\x1b[2J\rd").await.unwrap();
        terminal.wait_for("a\tb\r\nc\\u{1b}[2J\\rd\r\n");
        drop((connection, listener));
        assert_eq!(terminal.ended(), Some(6));
    })
    .await;
}

#[test]
fn a_history_is_kept_if_asked_and_only_for_this_user() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let file = Path::new(&name.text).with_file_name("history");
    let history = ["--history", file.to_str().unwrap(), "--json"];
    let mut terminal = Terminal::start(&name, &history);
    terminal.wait_for("> ");
    terminal.press("remember\r");
    terminal.wait_for("\"text\":\"remember\"");
    terminal.wait_for("> ");
    terminal.press(" forget\r");
    terminal.wait_for("\"text\":\" forget\"");
    terminal.wait_for("> ");
    terminal.press(CTRL_D);
    assert_eq!(terminal.ended(), Some(0));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut terminal = Terminal::start(&name, &history);
    terminal.wait_for("> ");
    terminal.press(UP);
    terminal.press("\r");
    terminal.wait_for("\"text\":\"remember\"");
}

/// Opening it would wait for a reader, before the first prompt.
#[test]
fn a_history_that_is_no_file_is_refused() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let fifo = Path::new(&name.text).with_file_name("history");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let mut terminal = Terminal::start(&name, &["--history", fifo.to_str().unwrap()]);
    terminal.wait_for("as --history");
    assert_eq!(terminal.ended(), Some(1));
}

/// `--interactive` in a script: the lines of stdin, and nothing but replies on stdout.
#[test]
fn without_a_terminal_there_is_no_prompt() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let mut client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text, "-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntwo\n")
        .unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"one\ntwo\n");
}
