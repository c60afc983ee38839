//! Tests that apply only to Linux: the kernel's queue of clients, and the socket in the file
//! system.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    time::{Duration, Instant},
};

use pipe_server::{
    Access, BindError, Client, ClientOptions, ConnectError, ListenerOptions, PipeListener,
    os::linux::{AccessExt as _, ListenerOptionsExt as _},
};
use rustix::{
    fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat},
    process::{getegid, geteuid},
};

use support::{DEADLINE, UniqueName, listening_socket, log::Log, unique_name};
use tokio::time::sleep;

/// Connects if there is room, without waiting.
async fn try_connect(name: &UniqueName) -> Result<Client, ConnectError> {
    let options = ClientOptions::new().connect_timeout(Duration::ZERO);
    options.connect(&name.text).await
}

fn assert_busy(refused: &Result<Client, ConnectError>) {
    let is_busy = matches!(refused, Err(ConnectError::Busy { .. }));
    assert!(is_busy, "{refused:?}");
}

#[tokio::test]
async fn the_queue_of_a_full_pipe_holds_one_client() {
    let name = unique_name();
    let options = ListenerOptions::new().max_instances(1);
    let mut listener = options.bind(&name.text).unwrap();
    let _client = try_connect(&name).await.unwrap();
    let connection = listener.accept().await.unwrap();
    let _queued = try_connect(&name).await.unwrap();
    assert_busy(&try_connect(&name).await);

    drop(connection);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(try_connect(&name).await.unwrap());
    }
    let _connection = listener.accept().await.unwrap();
    assert_busy(&try_connect(&name).await);
}

#[tokio::test]
async fn clients_queued_when_a_pipe_becomes_full_are_served_in_order() {
    let name = unique_name();
    let options = ListenerOptions::new().max_instances(1);
    let mut listener = options.bind(&name.text).unwrap();
    let mut clients = Vec::new();
    for number in 0..5 {
        let mut client = try_connect(&name).await.unwrap();
        client.send(format!("client {number}")).await.unwrap();
        clients.push(client);
    }
    for number in 0..5 {
        let mut connection = listener.accept().await.unwrap();
        let message = connection.recv().await.unwrap().unwrap();
        assert_eq!(message, format!("client {number}"));
        if number < 4 {
            assert_busy(&try_connect(&name).await);
        }
    }
}

/// Another user, usually `nobody`.
const OTHER_USER: u32 = 65_534;

fn bind(path: &Path) -> Result<PipeListener, BindError> {
    PipeListener::bind(path.to_str().unwrap())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Asserts that `bind` was denied, and why.
fn assert_denied(refused: Result<PipeListener, BindError>, reason: &str) {
    let error = refused.unwrap_err();
    let BindError::Denied { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(source.to_string().contains(reason), "{source}");
}

/// Gives a file to another user. Returns false without root, which it requires.
fn give_away(path: &Path) -> bool {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can give a file to another user");
        return false;
    }
    chown(path, Some(OTHER_USER), None).unwrap();
    true
}

#[tokio::test]
async fn a_directory_in_which_others_can_replace_the_socket_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    set_mode(directory.path(), 0o777);
    assert_denied(bind(&path), "everyone can replace files");
    set_mode(directory.path(), 0o1777);
    drop(bind(&path).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    set_mode(directory.path(), 0o755);
    if give_away(directory.path()) {
        assert_denied(bind(&path), "belongs to another user (uid 65534)");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_lock_that_is_not_a_file_of_this_user_is_not_reported_as_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let lock = directory.path().join("pipe.lock");
    mknodat(CWD, &lock, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    // A FIFO can't be opened for writing without a reader.
    bind(&path).unwrap_err();
    let _reader = File::options().read(true).write(true).open(&lock).unwrap();
    assert_denied(bind(&path), "pipe.lock is not a file of this user");

    fs::remove_file(&lock).unwrap();
    let locked = File::create(&lock).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let served = bind(&path).unwrap_err();
    assert!(matches!(served, BindError::InUse { .. }), "{served:?}");
    if give_away(&lock) {
        assert_denied(bind(&path), "pipe.lock is not a file of this user");
    }
}

#[tokio::test]
async fn the_socket_has_the_requested_mode() {
    for (access, mode) in [
        (Access::CurrentUser, 0o600),
        (Access::Everyone, 0o666),
        (Access::mode(0o620), 0o620),
    ] {
        let name = unique_name();
        let options = ListenerOptions::new().access(access);
        let _listener = options.bind(&name.text).unwrap();
        let metadata = fs::symlink_metadata(&name.text).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode);
    }
}

#[tokio::test]
async fn a_mode_with_more_than_permissions_is_refused() {
    let name = unique_name();
    let options = ListenerOptions::new().access(Access::mode(0o1660));
    let error = options.bind(&name.text).unwrap_err().to_string();
    assert!(error.contains("mode:1660"), "{error}");
    assert!(error.contains("use 0 to 0777"), "{error}");
}

#[tokio::test]
async fn the_socket_belongs_to_the_requested_group() {
    // Only root may choose one that this process is not in.
    let group = match geteuid().is_root() {
        true => 54_321,
        false => getegid().as_raw(),
    };
    for (access, mode) in [
        (Access::CurrentUser, 0o660),
        (Access::Everyone, 0o666),
        (Access::mode(0o620), 0o620),
    ] {
        let name = unique_name();
        let options = ListenerOptions::new().access(access).socket_group(group);
        let _listener = options.bind(&name.text).unwrap();
        let metadata = fs::symlink_metadata(&name.text).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (mode, group));
    }
}

#[tokio::test]
async fn a_group_that_could_not_get_in_is_refused() {
    let path = unique_name();
    for (name, group) in [("short", 0), (path.text.as_str(), u32::MAX)] {
        let options = ListenerOptions::new().socket_group(group);
        let error = options.bind(name).unwrap_err();
        let is_refused = matches!(
            error,
            BindError::Option {
                option: "socket_group",
                ..
            }
        );
        assert!(is_refused, "{error:?}");
    }
    assert!(!Path::new(&path.text).exists());
}

/// Waits until `condition`, which a look of the server at its socket file brings about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_socket_that_was_removed_is_created_again_and_no_client_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let log = Log::start();
    let mut listener = bind(&path).unwrap();
    let mut queued = Client::connect(&path).await.unwrap();
    queued.send("queued").await.unwrap();
    fs::remove_file(&path).unwrap();
    fs::remove_file(directory.path().join("pipe.lock")).unwrap();
    until("it is not there again", || path.exists()).await;
    until("it is not logged", || !socket_lines(&log).is_empty()).await;
    let lines = socket_lines(&log);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(path.to_str().unwrap()), "{lines:?}");
    assert!(lines[0].contains("created again"), "{lines:?}");

    let mut later = Client::connect(&path).await.unwrap();
    later.send("later").await.unwrap();
    for message in ["queued", "later"] {
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), message);
    }
    assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let error = bind(&path).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    drop(listener);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// The lines that the server of this thread logged about its socket file.
fn socket_lines(log: &Log) -> Vec<String> {
    log.lines_with(r#"reason="socket_file""#)
}

#[tokio::test]
async fn a_client_that_waits_for_a_server_reaches_the_socket_that_was_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let mut listener = bind(&path).unwrap();
    // The server already waits on the socket that is replaced.
    let serving = tokio::spawn(async move {
        let mut connection = listener.accept().await.unwrap();
        connection.recv().await.unwrap().unwrap()
    });
    fs::remove_file(&path).unwrap();
    let error = Client::connect(&path).await.unwrap_err();
    let ConnectError::NotFound { process_id, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(process_id, Some(std::process::id()));
    let options = ClientOptions::new().wait_for_server(true);
    let mut client = options
        .connect_timeout(DEADLINE)
        .connect(&path)
        .await
        .unwrap();
    client.send("hello").await.unwrap();
    assert_eq!(serving.await.unwrap(), "hello");
}

#[tokio::test]
async fn a_second_server_is_told_which_process_serves_the_pipe() {
    let expected = Some(std::process::id());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let listener = bind(&path).unwrap();
    assert_eq!(server_of(&path), expected);
    // Without its socket only the lock file says so.
    fs::remove_file(&path).unwrap();
    assert_eq!(server_of(&path), expected);
    drop(listener);

    // One that takes no lock.
    let name = unique_name();
    let _socket = listening_socket(&name);
    assert_eq!(server_of(Path::new(&name.text)), expected);
}

/// The process that a second server is told.
fn server_of(path: &Path) -> Option<u32> {
    let error = bind(path).unwrap_err();
    let BindError::InUse { process_id, .. } = &error else {
        panic!("{error:?}");
    };
    let said = format!("by process {}", process_id.unwrap_or(0));
    assert!(error.to_string().contains(&said), "{error}");
    *process_id
}
