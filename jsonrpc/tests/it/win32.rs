//! A client that knows nothing of this project: plain Win32 calls, in message mode.

use jsonrpsee::RpcModule;
use pipe_server::ListenerOptions;
use pipe_server_jsonrpc::serve;
use std::future::IntoFuture as _;
use support::{
    in_time,
    raw_pipe::{Ended, RawPipe},
};
use tokio::task::spawn_blocking;

#[tokio::test]
async fn a_win32_client_calls_a_method() {
    in_time(async {
        let pipe = RawPipe::new();
        let mut module = RpcModule::new(());
        module
            .register_method("add", |params, (), _| {
                params.parse::<[i64; 2]>().map(|[one, other]| one + other)
            })
            .unwrap();
        let listener = ListenerOptions::new().bind(pipe.name()).unwrap();
        tokio::spawn(serve(listener, module).into_future());
        let replies = spawn_blocking(move || {
            let client = pipe.open();
            let requests = [
                r#"{"jsonrpc":"2.0","id":1,"method":"add","params":[1,2]}"#,
                r#"{"jsonrpc":"2.0","id":2,"method":"subtract","params":[1,2]}"#,
            ];
            requests.map(|request| {
                client.end(client.start_write(request.as_bytes()));
                let Ended { code, data } = client.end(client.start_read(65536));
                assert_eq!(code, 0);
                String::from_utf8(data).unwrap()
            })
        });
        let [sum, error] = replies.await.unwrap();
        assert_eq!(sum, r#"{"jsonrpc":"2.0","id":1,"result":3}"#);
        assert!(error.contains("-32601"), "{error}");
    })
    .await;
}
