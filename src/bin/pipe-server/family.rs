//! A command of the shell and what it starts, which end together.

use std::{
    io,
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// Killed when dropped, unless the command itself is over: what that has left running goes on.
#[derive(Debug)]
pub(crate) struct Family {
    command: Child,
}

impl Family {
    pub(crate) fn start(command: &str) -> io::Result<Self> {
        let command = shell(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { command })
    }

    /// The command's stdin, stdout and stderr.
    pub(crate) fn take_pipes(
        &mut self,
    ) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        let child = &mut self.command;
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// Waits for the command alone.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.command.wait().await
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // None once the command was waited for. On Unix its id may be another process's from then on;
        // until then it is not, even if the command has ended.
        let Some(id) = self.command.id() else {
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
        // A job object would do this better, but it needs unsafe code, which programs don't have.
        // `taskkill` is waited for: once the command itself is killed its children can't be found.
        #[cfg(windows)]
        {
            _ = std::process::Command::new("taskkill")
                .args(["/T", "/F", "/PID", &id.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
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
    /// A console of its own: no window, and Ctrl-C on the server's console is the server's alone
    /// (*Process Creation Flags*).
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;

    let mut shell = Command::new("cmd");
    // With /S cmd takes off the outer quotes and leaves the rest as it stands.
    shell
        .args(["/D", "/S", "/C"])
        .raw_arg(format!("\"{command}\""))
        .creation_flags(CREATE_NO_WINDOW);
    shell
}
