//! A shell command and the processes it starts, which end together.

use std::{
    io,
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

#[cfg(windows)]
use process_wrap::tokio::{
    JobObject, TokioChildWrapper, TokioCommandWrap, TokioCommandWrapper as Wrapper,
};

/// Killed when dropped, unless the command itself has ended: processes that outlive it are left
/// alone.
///
/// A process group on Unix, a job object on Windows. Neither kills anything if this process is
/// itself killed. On Windows a job could (`JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`), but it would also
/// kill processes that outlive the command, and Unix has no equivalent.
#[derive(Debug)]
pub struct ProcessGroup {
    #[cfg(unix)]
    command: Child,
    #[cfg(windows)]
    command: Box<dyn TokioChildWrapper>,
}

impl ProcessGroup {
    /// Starts a command from [`shell`].
    pub fn start(mut shell: Command) -> io::Result<Self> {
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The command alone, for failures between its start and the end of this function.
            .kill_on_drop(true);
        #[cfg(unix)]
        let command = shell.spawn()?;
        #[cfg(windows)]
        let command = TokioCommandWrap::from(shell)
            .wrap(JobObject)
            .wrap(CommandFlags)
            .spawn()?;
        Ok(Self { command })
    }

    /// The command's process id, until it has been waited for.
    pub fn id(&mut self) -> Option<u32> {
        self.child().id()
    }

    /// The command's stdin, stdout and stderr.
    pub fn take_pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        let child = self.child();
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// Waits for the command alone, not for what it started.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child().wait().await
    }

    #[cfg(unix)]
    fn child(&mut self) -> &mut Child {
        &mut self.command
    }

    /// Not through the wrapper, which waits for the whole job in a thread that nothing can cancel.
    #[cfg(windows)]
    fn child(&mut self) -> &mut Child {
        self.command.inner_mut()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // None once the command has been waited for. From then on its id may belong to another
        // process on Unix; until then it does not, even if the command has ended.
        let Some(id) = self.id() else {
            return;
        };
        // Fails only if there is nothing left to kill.
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

/// A shell command for [`ProcessGroup::start`].
#[cfg(unix)]
pub fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    // In its own process group it can be killed whole, and Ctrl-C on the terminal reaches only the
    // server.
    shell.arg("-c").arg(command).process_group(0);
    shell
}

/// A shell command for [`ProcessGroup::start`].
#[cfg(windows)]
pub fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    // With /S, cmd strips the outer quotes and leaves the rest unchanged.
    shell
        .args(["/D", "/S", "/C"])
        .raw_arg(format!("\"{command}\""));
    shell
}

/// Whether [`ProcessGroup::start`] failed because the system or this process ran out of memory,
/// processes or open files. It may succeed later.
#[cfg(unix)]
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;

    matches!(
        Errno::from_io_error(error),
        Some(Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}

/// Whether [`ProcessGroup::start`] failed because the system or this process ran out of memory,
/// processes or handles. It may succeed later.
#[cfg(windows)]
pub fn is_shortage(error: &io::Error) -> bool {
    // *System Error Codes*.
    const ERROR_TOO_MANY_OPEN_FILES: i32 = 4;
    const ERROR_NOT_ENOUGH_MEMORY: i32 = 8;
    const ERROR_OUTOFMEMORY: i32 = 14;
    const ERROR_MAX_THRDS_REACHED: i32 = 164;
    const ERROR_NO_SYSTEM_RESOURCES: i32 = 1450;
    const ERROR_WORKING_SET_QUOTA: i32 = 1453;
    const ERROR_PAGEFILE_QUOTA: i32 = 1454;
    const ERROR_COMMITMENT_LIMIT: i32 = 1455;
    const ERROR_NOT_ENOUGH_QUOTA: i32 = 1816;
    /// As reported by process-wrap: `HRESULT_FROM_WIN32`.
    const FACILITY_WIN32: i32 = 0x8007_0000_u32 as i32;

    let Some(code) = error.raw_os_error() else {
        return false;
    };
    let code = match code & !0xffff {
        FACILITY_WIN32 => code & 0xffff,
        _ => code,
    };
    matches!(
        code,
        ERROR_TOO_MANY_OPEN_FILES
            | ERROR_NOT_ENOUGH_MEMORY
            | ERROR_OUTOFMEMORY
            | ERROR_MAX_THRDS_REACHED
            | ERROR_NO_SYSTEM_RESOURCES
            | ERROR_WORKING_SET_QUOTA
            | ERROR_PAGEFILE_QUOTA
            | ERROR_COMMITMENT_LIMIT
            | ERROR_NOT_ENOUGH_QUOTA
    )
}

/// The creation flags of the command (*Process Creation Flags*).
///
/// `JobObject` sets its own and drops others, including those of the library's `CreationFlags`
/// (process-wrap#36). So both are set here, after it.
#[cfg(windows)]
#[derive(Debug)]
struct CommandFlags;

#[cfg(windows)]
impl Wrapper for CommandFlags {
    fn pre_spawn(&mut self, command: &mut Command, _: &TokioCommandWrap) -> io::Result<()> {
        /// Its own console: no window, and Ctrl-C on the server's console reaches only the server.
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        /// `JobObject` resumes it once it is in the job, so that nothing it starts is outside.
        const CREATE_SUSPENDED: u32 = 0x0000_0004;

        command.creation_flags(CREATE_NO_WINDOW | CREATE_SUSPENDED);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_from_other_failures() {
        let (shortages, others): (&[i32], &[i32]) = match cfg!(windows) {
            // The later ones are HRESULTs.
            true => (
                &[8, 1450, 1455, 1816, 0x8007_05aa_u32 as i32],
                &[2, 5, 0x8007_0005_u32 as i32, 0x8000_0008_u32 as i32],
            ),
            // EAGAIN, ENOMEM, ENFILE, EMFILE; ENOENT, EACCES, E2BIG.
            false => (&[11, 12, 23, 24], &[2, 13, 7]),
        };
        for &code in shortages {
            assert!(is_shortage(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for &code in others {
            assert!(!is_shortage(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!is_shortage(&io::Error::other("no code")));
    }
}
