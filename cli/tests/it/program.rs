//! The programs as a test runs them.

use std::{
    cell::{OnceCell, RefCell},
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use support::{DEADLINE, UniqueName};

/// A server that is killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// Until the log is read, if it is a pipe.
    stderr: RefCell<Option<ChildStderr>>,
    /// Held open.
    pub(crate) stdout: BufReader<ChildStdout>,
    pub(crate) first_line: String,
    log: OnceCell<Log>,
}

impl Server {
    pub(crate) fn start(name: &UniqueName, arguments: &[&str]) -> Self {
        Self::spawn(&mut server(name, arguments))
    }

    /// Starts `command` and waits until clients can connect.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first_line = String::new();
        stdout.read_line(&mut first_line).unwrap();
        Self {
            stderr: RefCell::new(child.stderr.take()),
            child,
            stdout,
            first_line,
            log: OnceCell::new(),
        }
    }

    /// Waits for its end and gives its exit code and the rest of its stdout.
    #[cfg_attr(
        windows,
        allow(dead_code, reason = "only signals end it in good order")
    )]
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        ended(&mut self.child, &mut self.stdout)
    }

    /// What it logs, read from the first call on. Its stderr has to be a pipe.
    pub(crate) fn log(&self) -> &Log {
        self.log.get_or_init(|| Log::read(self.stderr()))
    }

    /// Its stderr, which has to be a pipe.
    pub(crate) fn stderr(&self) -> ChildStderr {
        self.stderr.take().expect("its stderr is not a pipe")
    }

    /// Kills it and gives the lines that were not waited for.
    #[cfg(target_os = "linux")]
    pub(crate) fn killed_log(mut self) -> String {
        self.log();
        let log = self.log.take().unwrap();
        drop(self);
        log.lines.iter().map(|line| line + "\n").collect()
    }
}

/// Waits for the end of `child` and gives its exit code and what it still wrote to `output`.
pub(crate) fn ended(child: &mut Child, output: &mut (impl Read + Send)) -> (Option<i32>, String) {
    let rest = unless_it_hangs(child, move || {
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        rest
    });
    (child.wait().unwrap().code(), rest)
}

/// What `read` returns, which reads from `child`.
fn unless_it_hangs<T: Send>(child: &mut Child, read: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        scope.spawn(move || sender.send(read()));
        receiver.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            // Its output ends with it, or the thread would wait for ever.
            _ = child.kill();
            panic!("it hangs");
        })
    })
}

#[cfg(unix)]
impl Server {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, signal).unwrap();
    }

    /// Ends it with a signal and gives its exit code and the rest of its stdout.
    pub(crate) fn end(mut self, signal: rustix::process::Signal) -> (Option<i32>, String) {
        self.signal(signal);
        self.ended()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What a server logs. It is read on a thread, so that the server never waits for it.
pub(crate) struct Log {
    lines: mpsc::Receiver<String>,
}

impl Log {
    fn read(stderr: ChildStderr) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                _ = sender.send(line);
            }
        });
        Self { lines }
    }

    /// Waits for a line with `part` in it, after those that were waited for before.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        self.up_to(part).pop().unwrap()
    }

    /// The same with the lines before it.
    pub(crate) fn up_to(&self, part: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("no line with {part:?} ({error}), but {lines:#?}"),
            }
            if lines.last().is_some_and(|line| line.contains(part)) {
                return lines;
            }
        }
    }
}

pub(crate) fn server(name: &UniqueName, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
    command
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

pub(crate) fn client(name: &UniqueName, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
    command
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a client to its end, with `input` as its stdin.
pub(crate) fn run_client(name: &UniqueName, arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = client(name, arguments).spawn().unwrap();
    // It may have ended already.
    _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

/// What a client prints that succeeds.
pub(crate) fn replies(name: &UniqueName, arguments: &[&str], input: &str) -> String {
    let output = run_client(name, arguments, input);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A user, as `--trust` and `--allow-user` take it, that the tests never run as.
pub(crate) const OTHER_USER: &str = if cfg!(windows) {
    "S-1-5-7"
} else {
    "4294967294"
};

/// Whether a process ignores a signal.
#[cfg(target_os = "linux")]
pub(crate) fn is_ignored(process: u32, signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    mask & (1 << (signal.as_raw() - 1)) != 0
}

/// The signals that end a server: SIGINT and SIGTERM, unless the tests were started with the first
/// one ignored, as by a shell without job control in the background. The server inherits that.
#[cfg(target_os = "linux")]
pub(crate) fn ending_signals() -> Vec<rustix::process::Signal> {
    use rustix::process::Signal;

    let mut signals = vec![Signal::TERM];
    match is_ignored(std::process::id(), Signal::INT) {
        true => eprintln!("left out: SIGINT is ignored"),
        false => signals.push(Signal::INT),
    }
    signals
}

/// A user without rights.
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
