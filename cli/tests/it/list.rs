//! `pipe-list`.

use std::process::{Command, Output, Stdio};

use crate::program::Server;
#[cfg(target_os = "linux")]
use crate::program::server;
use support::unique_name;

fn list(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-list"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The line with `part` in it.
fn line_with(lines: &str, part: &str) -> String {
    let line = lines.lines().find(|line| line.contains(part));
    line.unwrap_or_else(|| panic!("no {part} in {lines}"))
        .to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_is_listed_with_its_process_and_does_not_notice() {
    let name = unique_name();
    let mut command = server(&name, &["--access", "mode:0640"]);
    let mut server = Server::spawn(command.stderr(Stdio::piped()));
    let process_id = server.child.id();
    let owner = match rustix::process::geteuid().is_root() {
        true => "root".to_owned(),
        false => printed(&Command::new("id").arg("-un").output().unwrap()),
    };
    let owner = owner.trim_end();
    let table = printed(&list(&[]).output().unwrap());
    assert!(table.starts_with("NAME "), "{table}");
    let line = line_with(&table, &name.text);
    let columns: Vec<_> = line.split_whitespace().collect();
    let pid = process_id.to_string();
    assert_eq!(
        columns,
        [name.text.as_str(), "serving", &pid, owner, "0640"]
    );

    let lines = printed(&list(&["--json"]).output().unwrap());
    assert_eq!(
        line_with(&lines, &name.text),
        format!(
            r#"{{"name":"{}","state":"serving","pid":{pid},"owner":"{owner}","mode":"0640"}}"#,
            name.text
        )
    );
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    server.log().wait_for("served=0");
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_killed_server_leaves_in_the_directory_of_short_names_is_stale() {
    let unique = unique_name();
    let directory = std::path::Path::new(&unique.text).parent().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
    command
        .args(["--pipe-name", "short"])
        .env("XDG_RUNTIME_DIR", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let server = Server::spawn(&mut command);
    let listed = || {
        let output = list(&["--json"]).env("XDG_RUNTIME_DIR", directory).output();
        line_with(&printed(&output.unwrap()), r#""name":"short""#)
    };
    let line = listed();
    assert!(line.contains(r#""state":"serving""#), "{line}");
    // Killed: it can't clean up.
    drop(server);
    let line = listed();
    assert!(line.contains(r#""state":"stale","pid":null"#), "{line}");
    assert!(line.contains(r#""mode":"0600""#), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_whose_socket_file_was_replaced_is_unreachable() {
    use std::fs;

    let name = unique_name();
    let server = Server::start(&name, &[]);
    let other = format!("{}.other", name.text);
    let listed = || {
        let lines = printed(&list(&["--json"]).output().unwrap());
        line_with(&lines, &format!(r#""name":"{}""#, name.text))
    };
    let unreachable = format!(r#""state":"unreachable","pid":{},"#, server.child.id());
    fs::write(&other, "").unwrap();
    fs::rename(&other, &name.text).unwrap();
    assert!(listed().contains(&unreachable), "{}", listed());

    // By a socket that nobody serves.
    drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
    fs::rename(&other, &name.text).unwrap();
    let lines = printed(&list(&["--json"]).output().unwrap());
    line_with(&lines, &unreachable);
    line_with(&lines, r#""state":"stale","pid":null"#);
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_can_not_forge_another_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let forged = directory.path().join("forged");
    // A line of /proc/net/unix, which ends with a path.
    let forger = directory.path().join("\n0 0 0 10000 5 0 0 ");
    let forger = format!("{}{}", forger.display(), forged.display());
    std::fs::create_dir_all(std::path::Path::new(&forger).parent().unwrap()).unwrap();
    // Nobody serves it.
    drop(listening(forged.to_str().unwrap()));
    let _listening = listening(&forger);
    let lines = printed(&list(&["--json"]).output().unwrap());
    let named = format!(r#"{{"name":"{}","#, forged.display());
    assert!(!lines.contains(&named), "{lines}");
    let line = line_with(&lines, r"\n0 0 0 10000 5 0 0 ");
    assert!(line.contains(r#""state":"serving""#), "{line}");
}

/// A SEQPACKET socket that listens at `path`.
#[cfg(target_os = "linux")]
fn listening(path: &str) -> std::os::fd::OwnedFd {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
    };

    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 1).unwrap();
    socket
}

#[cfg(windows)]
#[test]
fn a_server_is_listed_with_its_instances() {
    if support::win32::wine_lacks("the names in the pipe file system") {
        return;
    }
    let name = unique_name();
    // How many of several exist depends on the moment.
    let _server = Server::start(&name, &["--max-instances", "1"]);
    let line = format!(r#"{{"name":"{}","instances":1}}"#, name.text);
    let lines = printed(&list(&["--json"]).output().unwrap());
    assert_eq!(line_with(&lines, &name.text), line);
    let table = printed(&list(&[]).output().unwrap());
    let line = line_with(&table, &name.text);
    let columns: Vec<_> = line.split_whitespace().collect();
    assert_eq!(columns, [name.text.as_str(), "1"]);
}
