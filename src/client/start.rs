//! Starting the server that a client needs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    debug::debug_fields,
    engine::native::{self, StartLock},
    error::StartError,
    name::PipeName,
    sync::Mutex,
};

/// The part of a command's stderr that an error shows, in bytes. An error message usually ends with
/// what matters.
const STDERR_SHOWN: u64 = 4096;

/// The time in which a server answers that its command has left running. After that it is started
/// again: it may have been idle for too long before this client could connect.
const FORK_TIME: Duration = Duration::from_secs(1);

/// A command that starts a server, once or more often.
#[derive(Clone)]
pub(super) struct ServerCommand {
    /// Locked while a process is being started.
    command: Arc<Mutex<Command>>,
    /// The program and its arguments. The environment may hold secrets.
    shown: Arc<str>,
}

impl ServerCommand {
    pub(super) fn new(command: Command) -> Self {
        let mut shown = command.get_program().to_string_lossy().into_owned();
        for argument in command.get_args() {
            shown = shown + " " + &argument.to_string_lossy();
        }
        Self {
            command: Arc::new(Mutex::new(command)),
            shown: shown.into(),
        }
    }

    /// Starts the command, detached from this process.
    fn spawn(&self, stderr: Option<&fs::File>) -> io::Result<Child> {
        let stderr = match stderr {
            Some(file) => file.try_clone()?.into(),
            None => Stdio::null(),
        };
        let mut command = self.command.lock();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let started = spawn_detached(&mut command);
        // The command would keep the file, and with it all that the server writes, for as long as
        // the client's options are kept.
        command.stderr(Stdio::null());
        started
    }
}

debug_fields! { ServerCommand, |command| shown = command.shown }

/// Signals of the client's terminal reach its foreground process group alone. A session of its own
/// would also take the terminal away, but takes a call between fork(2) and execve(2), which is
/// unsafe.
#[cfg(unix)]
fn spawn_detached(command: &mut Command) -> io::Result<Child> {
    use std::os::unix::process::CommandExt as _;

    command.process_group(0).spawn()
}

/// *Process Creation Flags*.
#[cfg(windows)]
fn spawn_detached(command: &mut Command) -> io::Result<Child> {
    use std::os::windows::process::CommandExt as _;

    /// A console of its own, without a window. With `DETACHED_PROCESS` there would be none, and
    /// each console program that the server starts would open one.
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    /// Ctrl-Break can be sent to it alone.
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;

    command.creation_flags(CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP);
    #[cfg(not(pipe_model))]
    return native::without_inherited_stdio(|| command.spawn());
    #[cfg(pipe_model)]
    command.spawn()
}

/// The progress of one client that needs its server started.
pub(crate) struct ServerStart<'a> {
    command: &'a ServerCommand,
    name: &'a PipeName,
    path: &'a Path,
    state: State,
    /// Held from before the command is started until the server answers: of many clients one starts
    /// it.
    lock: Option<StartLock>,
    stderr: Option<fs::File>,
}

enum State {
    New,
    /// Another client is starting the server.
    Waiting,
    /// Has looked whether others may start the server.
    Allowed,
    Running(oneshot::Receiver<io::Result<ExitStatus>>),
    Failed(ExitStatus),
    /// The command has ended successfully at this time, and may have left a server running.
    Succeeded(Instant),
}

impl<'a> ServerStart<'a> {
    pub(super) fn new(command: &'a ServerCommand, name: &'a PipeName, path: &'a Path) -> Self {
        Self {
            command,
            name,
            path,
            state: State::New,
            lock: None,
            stderr: None,
        }
    }

    /// Takes the next step while nobody serves the pipe. Returns whether to try to connect at once.
    pub(super) fn advance(&mut self) -> Result<bool, StartError> {
        let has_failed = self.look_after_command()?;
        match &self.state {
            // Because another server has the name, which may answer by now.
            State::Failed(_) if has_failed => Ok(true),
            State::New | State::Waiting => match native::start_lock(self.name, self.path) {
                Ok(None) => {
                    self.state = State::Waiting;
                    Ok(false)
                }
                locked => {
                    // Without a lock, the exclusive name decides which of several servers remains.
                    self.lock = locked.ok().flatten();
                    // Another client may have started it before the lock was taken.
                    self.state = State::Allowed;
                    Ok(true)
                }
            },
            State::Allowed => self.start(),
            State::Succeeded(since) if since.elapsed() > FORK_TIME => self.start(),
            State::Running(_) | State::Succeeded(_) => Ok(false),
            State::Failed(status) => Err(StartError::Ended {
                address: self.address(),
                command: self.command.shown.to_string(),
                status: *status,
                stderr: self.last_lines(),
            }),
        }
    }

    /// Takes note that another server has the name, which can't be connected to now: it is busy, or
    /// is shutting down. A command that failed for this reason is started again once the name is
    /// free.
    pub(super) fn wait_for_name(&mut self) -> Result<(), StartError> {
        self.look_after_command()?;
        if let State::Failed(_) = self.state {
            self.state = State::Allowed;
        }
        Ok(())
    }

    /// The error of a server that does not answer in time. `None` if another client is starting it.
    pub(super) fn timed_out(&self, waited: Duration) -> Option<StartError> {
        match self.state {
            State::Waiting => None,
            State::New | State::Allowed => Some(StartError::NoTime {
                address: self.address(),
                command: self.command.shown.to_string(),
            }),
            _ => Some(StartError::TimedOut {
                address: self.address(),
                command: self.command.shown.to_string(),
                waited,
                stderr: self.last_lines(),
            }),
        }
    }

    /// Starts the command in a thread, which waits for its end. Nothing else would reap it on Unix
    /// once this client is connected, and starting a process can block. Returns `false`: connecting
    /// has to wait.
    fn start(&mut self) -> Result<bool, StartError> {
        self.stderr = stderr_file().ok();
        let (ended, receiver) = oneshot::channel();
        self.state = State::Running(receiver);
        let command = self.command.clone();
        let stderr = self.stderr.as_ref().and_then(|file| file.try_clone().ok());
        let run = move || {
            let started = command.spawn(stderr.as_ref());
            drop((command, stderr));
            // The client may be connected, or gone.
            _ = ended.send(started.and_then(|mut child| child.wait()));
        };
        let thread = thread::Builder::new().name("pipe-server start".to_owned());
        match thread.spawn(run) {
            Ok(_) => Ok(false),
            Err(error) => Err(self.not_started(error)),
        }
    }

    fn not_started(&self, source: io::Error) -> StartError {
        StartError::Spawn {
            address: self.address(),
            command: self.command.shown.to_string(),
            source,
        }
    }

    /// Finds out whether the command has ended. Returns whether it has just failed.
    fn look_after_command(&mut self) -> Result<bool, StartError> {
        let State::Running(ended) = &mut self.state else {
            return Ok(false);
        };
        match ended.try_recv() {
            Ok(Ok(status)) if status.success() => {
                self.state = State::Succeeded(Instant::now());
            }
            Ok(Ok(status)) => {
                self.state = State::Failed(status);
                return Ok(true);
            }
            Ok(Err(error)) => return Err(self.not_started(error)),
            Err(_) => {}
        }
        Ok(false)
    }

    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn last_lines(&self) -> String {
        let Some(file) = &self.stderr else {
            return String::new();
        };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let begin = length.saturating_sub(STDERR_SHOWN);
        let mut bytes = vec![0; STDERR_SHOWN as usize];
        let read = read_at(file, &mut bytes, begin).unwrap_or(0);
        bytes.truncate(read);
        let text = String::from_utf8_lossy(&bytes);
        // The first line may be only the end of one.
        match text.split_once('\n') {
            Some((_, rest)) if begin > 0 => rest.to_owned(),
            _ => text.into_owned(),
        }
    }
}

/// A file for the stderr of a server, which only its holders can reach, and which is gone with the
/// last of them. Not a pipe: once the client is gone, a server would be killed by its next line, or
/// panic.
fn stderr_file() -> io::Result<fs::File> {
    let name = format!(
        "pipe-server-{}-{:016x}.stderr",
        std::process::id(),
        fastrand::u64(..)
    );
    let path = env::temp_dir().join(name);
    let mut options = fs::OpenOptions::new();
    options.read(true).append(true).create_new(true);
    open_without_name(&options, path)
}

#[cfg(unix)]
fn open_without_name(options: &fs::OpenOptions, path: PathBuf) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let file = options.clone().mode(0o600).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// *CreateFileW*. The directory is the user's own.
#[cfg(windows)]
fn open_without_name(options: &fs::OpenOptions, path: PathBuf) -> io::Result<fs::File> {
    use std::os::windows::fs::OpenOptionsExt as _;

    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;

    options
        .clone()
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
        .open(path)
}

#[cfg(unix)]
fn read_at(file: &fs::File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

/// Moves the file's cursor, which appending ignores.
#[cfg(windows)]
fn read_at(file: &fs::File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_command_does_not_keep_the_stderr_of_its_last_server() {
        let command = ServerCommand::new(Command::new("true"));
        let file = stderr_file().unwrap();
        command.spawn(Some(&file)).unwrap().wait().unwrap();
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let opened = fs::read_dir("/proc/self/fd").unwrap();
        let opened = opened.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
        let file = id(file.metadata().unwrap());
        assert_eq!(
            opened.filter(|opened| id(opened.clone()) == file).count(),
            1
        );
    }
}
