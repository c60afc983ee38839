//! Messages that no client of jsonrpsee sends.

use jsonrpsee::{RpcModule, core::client::ClientT, rpc_params};
use pipe_server::ClientOptions;
use pipe_server_jsonrpc::{RpcServer, defaults};
use support::{Kind, on_every_engine};

use super::{LIMIT, connect, failure, raw, start};

on_every_engine! {
    malformed_json_is_answered_with_the_error_of_json_rpc,
    deeply_nested_json_is_answered_with_an_error,
    a_batch_of_many_entries_is_not_parsed_by_default,
    a_request_over_the_limit_is_answered_and_ends_the_connection,
    a_response_over_the_limit_becomes_an_error,
    a_method_that_panics_costs_its_own_client_the_connection,
}

fn module() -> RpcModule<()> {
    let mut module = RpcModule::new(());
    module
        .register_method("length", |params, (), _| {
            params
                .one::<Vec<jsonrpsee::core::JsonValue>>()
                .map(|list| list.len())
        })
        .unwrap();
    module
        .register_method("long", |_, (), _| "x".repeat(2 * LIMIT))
        .unwrap();
    module
        .register_method("fail", |_, (), _| {
            Err::<(), _>(failure(&"x".repeat(2 * LIMIT)))
        })
        .unwrap();
    module
        .register_async_method("panic", |_, _, _| async { panic!("for the test") as () })
        .unwrap();
    module
}

async fn malformed_json_is_answered_with_the_error_of_json_rpc(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(module()));
    let mut client = pipe.connect().await;
    for (message, id, code) in [
        ("x", "null", -32700),
        (" ", "null", -32700),
        ("7", "null", -32700),
        ("{", "null", -32700),
        ("[", "null", -32700),
        (r#"{"jsonrpc":"2.0","id":1,"method""#, "null", -32700),
        (r#"{"id":1,"method":"length"}"#, "1", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"length"}"#, "1", -32600),
        (r#"{"jsonrpc":"2.0","id":"a","method":1}"#, r#""a""#, -32600),
        (
            r#" {"jsonrpc":"2.0","id":2,"method":"length"}"#,
            "2",
            -32602,
        ),
        ("\u{0}", "null", -32700),
        ("{}", "null", -32600),
        // It is no notification: its client waits for an answer.
        (
            r#"{"jsonrpc":"2.0","id":1.5,"method":"length"}"#,
            "null",
            -32600,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"length"}"#,
            "null",
            -32600,
        ),
        (
            r#"{"jsonrpc":"2.0","i\u0064":[],"method":"length"}"#,
            "null",
            -32600,
        ),
    ] {
        let reply = raw(&mut client, message).await;
        let begin = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"#);
        assert!(reply.starts_with(&begin), "{message}: {reply}");
    }
    let reply = client.call(&b"{\"jsonrpc\":\"\xff"[..]).await.unwrap();
    assert!(String::from_utf8_lossy(&reply).contains("-32700"));
}

async fn deeply_nested_json_is_answered_with_an_error(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(module()));
    let mut client = pipe.connect().await;
    let depth = 1900;
    let nested = "[".repeat(depth) + &"]".repeat(depth);
    let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"length","params":[{nested}]}}"#);
    let reply = raw(&mut client, &request).await;
    assert!(reply.contains("-32602"), "{reply}");
    let reply = raw(&mut client, &nested).await;
    assert!(reply.contains("-32600"), "{reply}");
    let reply = raw(&mut client, &"[".repeat(LIMIT)).await;
    assert!(reply.contains("-32700"), "{reply}");
    let reply = raw(&mut client, &r#"{"a":"#.repeat(LIMIT / 5)).await;
    assert!(reply.contains("-32700"), "{reply}");
}

async fn a_batch_of_many_entries_is_not_parsed_by_default(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(module()));
    let mut client = pipe.connect().await;
    let batch = vec!["1"; defaults::MAX_BATCH + 1].join(",");
    let reply = raw(&mut client, &format!("[{batch}]")).await;
    assert!(reply.contains("-32010"), "{reply}");
}

async fn a_request_over_the_limit_is_answered_and_ends_the_connection(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(module()));
    let mut client = pipe
        .connect_with(ClientOptions::new().max_message_size(2 * LIMIT))
        .await;
    let reply = raw(&mut client, &"x".repeat(LIMIT + 1)).await;
    assert!(reply.contains("-32007"), "{reply}");
    assert!(!matches!(client.recv().await, Ok(Some(_))));
    // Nobody else notices.
    let client = connect(&pipe).await;
    let length: u32 = client.request("length", rpc_params![[0, 0]]).await.unwrap();
    assert_eq!(length, 2);
}

async fn a_response_over_the_limit_becomes_an_error(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(module()));
    let mut client = pipe.connect().await;
    for method in ["long", "fail"] {
        let request = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}"}}"#);
        let reply = raw(&mut client, &request).await;
        let begin = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32008,"#;
        assert!(reply.starts_with(begin), "{method}: {reply}");
        let reply = raw(&mut client, &format!("[{request}]")).await;
        assert!(
            reply.contains("-32008") || reply.contains("-32011"),
            "{method}: {reply}"
        );
    }
}

async fn a_method_that_panics_costs_its_own_client_the_connection(kind: Kind) {
    let (server, pipe) = start(kind, RpcServer::new(module()));
    let other = connect(&pipe).await;
    let client = connect(&pipe).await;
    let called = client.request::<(), _>("panic", rpc_params![]).await;
    assert!(called.is_err());
    let length: u32 = other.request("length", rpc_params![[0]]).await.unwrap();
    assert_eq!(length, 1);
    drop(other);
    assert_eq!(server.stop().await.aborted, 0);
}
