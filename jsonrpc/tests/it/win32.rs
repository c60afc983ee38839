//! A client that knows nothing of this project: plain Win32 calls, in message mode.

use std::future::IntoFuture as _;

use jsonrpsee::RpcModule;
use pipe_server::PipeListener;
use pipe_server_jsonrpc::serve;
use support::{in_time, unique_name, win32::call_as_the_sample_does};
use tokio::task::spawn_blocking;

#[tokio::test]
async fn a_win32_client_calls_a_method() {
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
        let address = format!(r"\\.\pipe\{}", name.text);
        let call = async |request: &'static [u8]| {
            let address = address.clone();
            let called = spawn_blocking(move || call_as_the_sample_does(&address, request));
            String::from_utf8(called.await.unwrap()).unwrap()
        };
        let sum = call(br#"{"jsonrpc":"2.0","id":1,"method":"add","params":[1,2]}"#).await;
        assert_eq!(sum, r#"{"jsonrpc":"2.0","id":1,"result":3}"#);
        let error = call(br#"{"jsonrpc":"2.0","id":2,"method":"subtract"}"#).await;
        assert!(error.contains("-32601"), "{error}");
    })
    .await;
}
