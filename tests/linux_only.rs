//! What holds on Linux alone: the kernel's queue of clients, and the socket's place in the file system.

#![cfg(all(target_os = "linux", feature = "test-util"))]

mod support;

use std::time::Duration;

use pipe_server::{Client, ClientOptions, ConnectError, ListenerOptions};

use support::{UniqueName, unique_name};

/// Connects if there is room now.
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
async fn clients_that_are_queued_when_a_pipe_gets_full_are_served_in_turn() {
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
