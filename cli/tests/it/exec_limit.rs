//! `pipe-server --exec-limit`: who gets a command when there are not enough for all.

use std::process::Stdio;

use pipe_server::Client;
use support::{in_time, unique_name};

use crate::program::{Server, server};

/// A command that replies with its process id, and to `wait` once `file` exists. It creates
/// `file.waits` when it has read that request.
fn process_id_command(file: &std::path::Path) -> String {
    format!(
        r#"while read -r line; do
            if [ "$line" = wait ]; then
                : >'{0}.waits'
                while [ ! -e '{0}' ]; do sleep 0.01; done
            fi
            echo $$
        done"#,
        file.display()
    )
}

async fn wait_until_gone(process: &[u8]) {
    let process = std::str::from_utf8(process).unwrap().parse().unwrap();
    let process = rustix::process::Pid::from_raw(process).unwrap();
    while rustix::process::test_kill_process(process).is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_command_counts_for_the_limit_until_its_client_leaves_and_is_then_killed() {
    in_time(async {
        let name = unique_name();
        let directory = tempfile::tempdir().unwrap();
        let command = process_id_command(&directory.path().join("never"));
        let limit = ["-v", "--exec-limit", "1", "--exec-mode", "lines"];
        let arguments = [&limit[..], &["--exec", &command]].concat();
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let mut first = Client::connect(&name.text).await.unwrap();
        let process = first.call("a").await.unwrap();
        first.send("wait").await.unwrap();
        let mut second = Client::connect(&name.text).await.unwrap();
        second.send("b").await.unwrap();
        server.log().wait_for("--exec-limit");

        drop(first);
        let other = second.recv().await.unwrap().unwrap();
        assert_ne!(process, other);
        wait_until_gone(&process).await;
    })
    .await;
}

#[tokio::test]
async fn a_command_whose_client_idles_makes_room_for_one_that_waits() {
    in_time(async {
        let name = unique_name();
        let directory = tempfile::tempdir().unwrap();
        let go_on = directory.path().join("go-on");
        let command = process_id_command(&go_on);
        let limit = ["-v", "--exec-limit", "1", "--exec-mode", "lines"];
        let arguments = [&limit[..], &["--exec", &command]].concat();
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let mut first = Client::connect(&name.text).await.unwrap();
        let process = first.call("a").await.unwrap();
        first.send("wait").await.unwrap();
        // Until then the first client may be taken for an idle one.
        while !directory.path().join("go-on.waits").exists() {
            tokio::task::yield_now().await;
        }
        let mut second = Client::connect(&name.text).await.unwrap();
        second.send("b").await.unwrap();
        server.log().wait_for("--exec-limit");

        // The request in flight is answered, and then the client idles.
        std::fs::write(&go_on, "").unwrap();
        assert_eq!(first.recv().await.unwrap().unwrap(), process);
        assert_eq!(first.recv().await.unwrap(), None);
        server.log().wait_for("raise --exec-limit");
        let other = second.recv().await.unwrap().unwrap();
        assert_ne!(process, other);
        wait_until_gone(&process).await;
    })
    .await;
}

#[tokio::test]
async fn as_many_killed_commands_as_the_limit_leave_no_zombie_and_their_places() {
    in_time(async {
        use rustix::process::{Pid, Signal, kill_process};

        let name = unique_name();
        let command = "while read -r line; do echo $$; done";
        let limit = ["--exec-limit", "4", "--exec-mode", "lines"];
        let arguments = [&limit[..], &["--exec", command]].concat();
        let _server = Server::start(&name, &arguments);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Client::connect(&name.text).await.unwrap();
            let process = client.call("a").await.unwrap();
            clients.push((client, process));
        }
        for (client, process) in &mut clients {
            let id = std::str::from_utf8(process).unwrap().parse().unwrap();
            kill_process(Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();
            assert_eq!(client.recv().await.unwrap(), None);
            wait_until_gone(process).await;
        }
        let mut fifth = Client::connect(&name.text).await.unwrap();
        fifth.call("a").await.unwrap();
    })
    .await;
}

#[cfg(target_os = "linux")]
mod as_root {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
        path::Path,
        process::{Child, Command},
    };

    use support::UniqueName;

    use super::*;
    use crate::program::{NOBODY, can_run_as_nobody};

    /// A server with 4 commands, which another user may use.
    fn shared_server(name: &UniqueName, arguments: &[&str]) -> Server {
        let directory = Path::new(&name.text).parent().unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        let shared = ["-v", "--access", "everyone", "--exec-limit", "4"];
        let arguments = [&shared[..], arguments].concat();
        Server::spawn(server(name, &arguments).stderr(Stdio::piped()))
    }

    /// A client of the other user, which sends one request and then waits.
    struct Other(Child);

    impl Other {
        fn start(name: &UniqueName, request: &str) -> Self {
            let mut client = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
            client
                .args(["--pipe-name", &name.text, request])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Self(client.uid(NOBODY).gid(NOBODY).spawn().unwrap())
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }

    /// Its requests never end, and it has more of them than there are commands.
    #[tokio::test]
    async fn one_user_can_not_take_all_commands_from_the_others() {
        if !can_run_as_nobody() {
            return;
        }
        in_time(async {
            let command = r#"read -r l; [ "$l" = never ] && sleep 1000; printf done"#;
            for mode in ["request", "lines"] {
                let command = match mode {
                    "lines" => &format!("{command}; echo; cat"),
                    _ => command,
                };
                let name = unique_name();
                let server = shared_server(&name, &["--exec-mode", mode, "--exec", command]);
                let _others = [(); 8].map(|()| Other::start(&name, "never"));
                for _ in 0..3 {
                    server.log().wait_for("command started");
                }
                let mut client = Client::connect(&name.text).await.unwrap();
                assert_eq!(client.call("hello").await.unwrap(), "done", "{mode}");
            }
        })
        .await;
    }
}
