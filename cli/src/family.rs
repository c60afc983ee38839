//! A command of the shell and what it starts, which end together.

use std::{
    io,
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

#[cfg(windows)]
use process_wrap::tokio::{
    JobObject, TokioChildWrapper, TokioCommandWrap, TokioCommandWrapper as Wrapper,
};

/// Killed when dropped, unless the command itself is over: what that has left running goes on.
///
/// A process group on Unix, a job object on Windows. Neither kills anything when this very process is
/// killed. On Windows a job could (`JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`), but it would also kill what a
/// command has left running, and on Unix nothing does either.
#[derive(Debug)]
pub struct Family {
    #[cfg(unix)]
    command: Child,
    #[cfg(windows)]
    command: Box<dyn TokioChildWrapper>,
}

impl Family {
    pub fn start(command: &str) -> io::Result<Self> {
        let mut shell = shell(command);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The command alone; for what fails between its start and the end of this function.
            .kill_on_drop(true);
        #[cfg(unix)]
        let command = shell.spawn()?;
        #[cfg(windows)]
        let command = TokioCommandWrap::from(shell)
            .wrap(JobObject)
            .wrap(Flags)
            .spawn()?;
        Ok(Self { command })
    }

    /// The command's stdin, stdout and stderr.
    pub fn take_pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        let child = self.child();
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// Waits for the command alone.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child().wait().await
    }

    #[cfg(unix)]
    fn child(&mut self) -> &mut Child {
        &mut self.command
    }

    /// Not the wrapper, which waits for the whole job, in a thread that nothing can cancel.
    #[cfg(windows)]
    fn child(&mut self) -> &mut Child {
        self.command.inner_mut()
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // None once the command was waited for. On Unix its id may be another process's from then on;
        // until then it is not, even if the command has ended.
        let Some(id) = self.child().id() else {
            return;
        };
        // It fails only if there is nothing left to kill.
        #[cfg(unix)]
        if let Some(group) = i32::try_from(id)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        #[cfg(windows)]
        if let Err(error) = self.command.start_kill() {
            tracing::debug!(command.pid = id, %error, "the command was not killed");
        }
    }
}

#[cfg(unix)]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    // A process group of its own can be killed whole, and Ctrl-C on the terminal is the server's alone.
    shell.arg("-c").arg(command).process_group(0);
    shell
}

#[cfg(windows)]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    // With /S cmd takes off the outer quotes and leaves the rest as it stands.
    shell
        .args(["/D", "/S", "/C"])
        .raw_arg(format!("\"{command}\""));
    shell
}

/// The flags that the command is created with (*Process Creation Flags*).
///
/// `JobObject` sets its own and loses others, also those of the library's `CreationFlags`
/// (process-wrap#36). So both are set here, after it.
#[cfg(windows)]
#[derive(Debug)]
struct Flags;

#[cfg(windows)]
impl Wrapper for Flags {
    fn pre_spawn(&mut self, command: &mut Command, _: &TokioCommandWrap) -> io::Result<()> {
        /// A console of its own: no window, and Ctrl-C on the server's console is the server's alone.
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        /// `JobObject` lets it run once it is in the job, so that nothing it starts is outside.
        const CREATE_SUSPENDED: u32 = 0x0000_0004;

        command.creation_flags(CREATE_NO_WINDOW | CREATE_SUSPENDED);
        Ok(())
    }
}
