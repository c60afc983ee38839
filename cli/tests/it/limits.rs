//! Limits of the system (ulimit): a program that reaches one says so, and neither hangs nor dies.

use std::{
    os::unix::process::CommandExt as _,
    process::{self, Command, Stdio},
};

use support::unique_name;

use crate::program::{can_run_as_nobody, ended};

/// `program` with a limit that prlimit(1) sets.
fn limited(limit: &str, program: &str) -> Command {
    let mut command = Command::new("prlimit");
    command
        .args([limit, program])
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The limit counts the threads of all processes of a user, and root has none.
#[test]
fn a_program_that_can_not_start_its_threads_says_so_in_one_line() {
    let name = unique_name();
    // A user without any other process.
    let user = can_run_as_nobody().then(|| 200_000 + process::id());
    let programs = [
        (env!("CARGO_BIN_EXE_pipe-server"), "pipe-server"),
        #[cfg(feature = "bench")]
        (env!("CARGO_BIN_EXE_pipe-bench"), "pipe-bench"),
    ];
    for (program, short) in programs {
        for threads in [1, 2, 3, 4, 20] {
            let mut command = limited(&format!("--nproc={threads}"), program);
            command.args(["--pipe-name", &name.text]);
            match short {
                "pipe-bench" => command.args(["--threads", "32"]),
                _ => command.env("TOKIO_WORKER_THREADS", "32"),
            };
            if let Some(user) = user {
                command.uid(user).gid(user);
            }
            let mut child = command.spawn().unwrap();
            let mut output = child.stderr.take().unwrap();
            let (code, said) = ended(&mut child, &mut output);
            assert_eq!(code, Some(1), "{threads}: {said}");
            assert_eq!(said.lines().count(), 1, "{threads}: {said}");
            assert!(
                said.starts_with(&format!("{short}: can't start the thread")),
                "{threads}: {said}"
            );
        }
    }
}
