//! A service of three methods, a subscription that reports progress, and the generated client.

use std::{future::IntoFuture as _, process};

use jsonrpsee::{
    PendingSubscriptionSink,
    core::{RpcResult, SubscriptionResult, async_trait, to_json_raw_value},
    proc_macros::rpc,
    types::ErrorObjectOwned,
};
use pipe_server::{BoxError, Peer, PipeListener};
use pipe_server_jsonrpc::{connect, serve};

#[rpc(server, client, namespace = "build")]
trait Build {
    #[method(name = "version")]
    fn version(&self) -> RpcResult<String>;

    #[method(name = "divide")]
    async fn divide(&self, dividend: i64, divisor: i64) -> RpcResult<i64>;

    #[method(name = "caller", with_extensions)]
    async fn caller(&self) -> RpcResult<u32>;

    #[subscription(name = "start", unsubscribe = "stop", item = u32)]
    async fn start(&self, steps: u32) -> SubscriptionResult;
}

struct Builder;

#[async_trait]
impl BuildServer for Builder {
    fn version(&self) -> RpcResult<String> {
        Ok("1.0".to_owned())
    }

    async fn divide(&self, dividend: i64, divisor: i64) -> RpcResult<i64> {
        let by_zero = || ErrorObjectOwned::owned(1, "division by zero", None::<()>);
        dividend.checked_div(divisor).ok_or_else(by_zero)
    }

    async fn caller(&self, extensions: &jsonrpsee::Extensions) -> RpcResult<u32> {
        Ok(extensions.get::<Peer>().map_or(0, Peer::process_id))
    }

    async fn start(&self, pending: PendingSubscriptionSink, steps: u32) -> SubscriptionResult {
        let sink = pending.accept().await?;
        for step in 1..=steps {
            // Fails once the client has unsubscribed or disconnected.
            sink.send(to_json_raw_value(&(100 * step / steps))?).await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let name = format!("progress-{}", process::id());
    let serving = serve(PipeListener::bind(&name)?, Builder.into_rpc());
    tokio::spawn(serving.into_future());

    let client = connect(&name).await?;
    println!("version {}", client.version().await?);
    println!("7 / 0: {}", client.divide(7, 0).await.unwrap_err());
    assert_eq!(client.caller().await?, process::id());
    let mut progress = client.start(4).await?;
    // jsonrpsee tells a client only of a subscription that ends with an error.
    let mut percent = 0;
    while percent < 100 {
        percent = progress.next().await.ok_or("the server has closed")??;
        println!("{percent} %");
    }
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
