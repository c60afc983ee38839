//! Limits of the system (ulimit): a program that reaches one says so, and neither hangs nor dies.

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{self, Command, Stdio},
};

use pipe_server::Client;
use rustix::process::Signal;
use support::{in_time, unique_name};

use crate::{
    log::echo,
    program::{Server, can_run_as_nobody, ended, stderr},
    streams::PROGRAMS,
};

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
            // jemalloc reports that its own thread can't be started, and does without.
            let lines = said.lines().filter(|line| !line.starts_with("<jemalloc>"));
            let said = lines.collect::<Vec<_>>().join("\n");
            assert_eq!(code, Some(1), "{threads}: {said}");
            assert_eq!(said.lines().count(), 1, "{threads}: {said}");
            assert!(
                said.starts_with(&format!("{short}: can't start the thread")),
                "{threads}: {said}"
            );
        }
    }
}

/// jemalloc would ask for the threads that it may not have again and again, and say so each time.
#[cfg(feature = "jemalloc")]
#[test]
fn an_allocator_that_can_not_start_its_thread_does_without() {
    if !can_run_as_nobody() {
        return;
    }
    let mut started = 0;
    for threads in 2..=8 {
        let user = 400_000 + process::id();
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(user), Some(user)).unwrap();
        let mut command = limited(
            &format!("--nproc={threads}"),
            env!("CARGO_BIN_EXE_pipe-server"),
        );
        command
            .arg("--pipe-name")
            .arg(directory.path().join("pipe"))
            .env("TOKIO_WORKER_THREADS", "2")
            .uid(user)
            .gid(user);
        let mut server = Server::spawn(&mut command);
        if !server.first_line.is_empty() {
            started += 1;
            server.signal(Signal::TERM);
        }
        let mut stderr = server.stderr();
        let said = ended(&mut server.child, &mut stderr).1;
        let jemalloc = |line: &&str| line.starts_with("<jemalloc>");
        assert!(said.lines().filter(jemalloc).count() < 8, "{threads}");
    }
    assert!(started > 0, "the server started with none of the limits");
}

#[test]
fn a_client_that_can_not_start_a_thread_for_stdin_says_so() {
    if !can_run_as_nobody() {
        return;
    }
    let name = unique_name();
    let directory = Path::new(&name.text).parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o711)).unwrap();
    let _server = Server::start(&name, &["--echo", "--access", "everyone"]);
    let user = 300_000 + process::id();
    let mut command = limited("--nproc=1", env!("CARGO_BIN_EXE_pipe-client"));
    command.args(["--pipe-name", &name.text, "--trust", "anyone"]);
    let output = command.uid(user).gid(user).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains("can't start the thread that reads stdin"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_file_that_reached_the_limit_of_its_size_ends_no_program() {
    let name = unique_name();
    let server = Server::start(&name, &["--echo"]);
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("replies")).unwrap();
    let mut client = limited("--fsize=10", env!("CARGO_BIN_EXE_pipe-client"));
    client
        .args(["--pipe-name", &name.text, "more than ten bytes"])
        .stdout(file);
    let output = client.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("can't write to stdout"),
        "{output:?}"
    );
    drop(server);
}

#[test]
fn help_for_a_file_that_may_not_grow_is_a_failure_and_so_is_a_list() {
    let name = unique_name();
    // It is listed.
    let _server = Server::start(&name, &[]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output");
    let arguments = PROGRAMS.iter().flat_map(|&program| {
        let alone = program.ends_with("pipe-list").then_some((program, &[][..]));
        let all = [(program, &["--help"][..]), (program, &["--version"])];
        all.into_iter().chain(alone)
    });
    for (program, arguments) in arguments {
        let mut command = limited("--fsize=0", program);
        command.args(arguments).stdout(File::create(&path).unwrap());
        let output = command.output().unwrap();
        let said = stderr(&output);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{program} {arguments:?}: {output:?}"
        );
        assert!(said.contains("can't write to stdout"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_log_that_reached_the_limit_of_its_size_loses_lines_and_counts_them() {
    let name = unique_name();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut command = limited("--fsize=10000", env!("CARGO_BIN_EXE_pipe-server"));
    command
        .args(["--pipe-name", &name.text, "--echo", "-vv", "--log-file"])
        .arg(&path);
    let server = Server::spawn(&mut command);
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        while fs::metadata(&path).unwrap().len() < 10_000 {
            echo(&mut client, 1).await;
        }
        echo(&mut client, 100).await;
        loop {
            let log = fs::read_to_string(&path).unwrap();
            if log.contains("log lines were dropped") {
                break;
            }
            // The lines that waited may have filled it again.
            if log.len() == 10_000 {
                // As logrotate's copytruncate does.
                let file = File::options().write(true).truncate(true).open(&path);
                drop(file.unwrap());
            }
            echo(&mut client, 1).await;
        }
    })
    .await;
    drop(server);
}

#[test]
fn the_default_of_the_buffered_bytes_heeds_each_limit_of_the_memory() {
    for limit in ["--as=800000000", "--data=800000000"] {
        let name = unique_name();
        let mut command = limited(limit, env!("CARGO_BIN_EXE_pipe-server"));
        let server = Server::spawn(command.args(["--pipe-name", &name.text]));
        let line = server.log().up_to("listening").concat();
        assert!(line.contains("bytes=200000000"), "{limit}: {line}");
    }
}

/// The server catches SIGXFSZ, and does not ignore it.
#[tokio::test]
async fn a_command_starts_with_the_default_for_the_limit_of_files() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", "grep SigIgn /proc/self/status"]);
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        let reply = client.call("?").await.unwrap();
        let reply = String::from_utf8(reply.to_vec()).unwrap();
        let ignored = reply.trim().rsplit('\t').next().unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        let limit = Signal::XFSZ.as_raw() - 1;
        assert_eq!(ignored & (1 << limit), 0, "{reply}");
    })
    .await;
}
