//! The client in Python, with a JSON-RPC library that is not ours.

use std::{future::IntoFuture as _, process::Command};

use jsonrpsee::RpcModule;
use pipe_server::PipeListener;
use pipe_server_jsonrpc::serve;
use support::{in_time, unique_name};
use tokio::task::spawn_blocking;

#[tokio::test]
#[ignore = "needs jsonrpcclient from PyPI: run by examples/clients/test linux python-rpc"]
async fn a_client_in_python_calls_a_method() {
    in_time(async {
        let name = unique_name();
        let mut module = RpcModule::new(());
        module
            .register_method("add", |params, (), _| {
                params.parse::<[i64; 2]>().map(|[one, other]| one + other)
            })
            .unwrap();
        let listener = PipeListener::bind(&name.text).unwrap();
        tokio::spawn(serve(listener, module).into_future());
        let run = move |arguments: &[&str]| {
            let client = "../examples/clients/python/rpc.py";
            let mut command = Command::new("python3");
            let output = command.args([client, &name.text]).args(arguments).output();
            let output = output.unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8(text).unwrap())
        };
        let calls = spawn_blocking(move || (run(&["add", "1", "2"]), run(&["none"])));
        let (sum, error) = calls.await.unwrap();
        assert_eq!(sum, (Some(0), "3\n".to_owned()));
        assert_eq!(
            error,
            (Some(1), "none: error -32601: Method not found\n".to_owned())
        );
    })
    .await;
}
