//! Compares jsonrpsee on a pipe with jsonrpsee over WebSocket and HTTP on loopback. Server and clients share a runtime,
//! as in a test of jsonrpsee; each client makes one call after the other.
//!
//! ```text
//! cargo run --profile dist --manifest-path jsonrpc/compare/Cargo.toml [SECONDS]
//! ```

use std::{
    env,
    error::Error,
    future::{Future, IntoFuture as _},
    process,
    time::{Duration, Instant},
};

use jsonrpsee::{
    RpcModule,
    core::client::ClientT,
    http_client::HttpClientBuilder,
    rpc_params,
    server::{ServerBuilder, ServerConfig},
    ws_client::WsClientBuilder,
};
use pipe_server::PipeListener;
use tokio::task::JoinSet;

type BoxError = Box<dyn Error + Send + Sync>;

/// How many clients call at the same time.
const CLIENTS: [usize; 3] = [1, 8, 64];

/// How often the contenders take turns. The figures are medians.
const ROUNDS: usize = 5;

/// Calls before the measurement begins, of each client.
const WARM_UP: usize = 100;

#[derive(Clone, Copy)]
struct Figures {
    requests_per_second: f64,
    p99: Duration,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let seconds = env::args().nth(1).map_or(Ok(2.0), |text| text.parse())?;
    let time = Duration::from_secs_f64(seconds);
    let name = format!("jsonrpc-compare-{}", process::id());
    let listener = PipeListener::bind(&name)?;
    tokio::spawn(pipe_server_jsonrpc::serve(listener, module()?).into_future());
    let config = ServerConfig::builder().max_connections(1000).build();
    let server = ServerBuilder::with_config(config)
        .build("127.0.0.1:0")
        .await?;
    let address = server.local_addr()?;
    let _running = server.start(module()?);

    println!("clients  transport  requests/s  p99");
    for clients in CLIENTS {
        let mut rounds: [Vec<Figures>; 3] = Default::default();
        for _ in 0..ROUNDS {
            let pipe = async || Ok(pipe_server_jsonrpc::connect(&name).await?);
            rounds[0].push(measure(clients, time, pipe).await?);
            let websocket = async || {
                let builder = WsClientBuilder::default();
                Ok(builder.build(format!("ws://{address}")).await?)
            };
            rounds[1].push(measure(clients, time, websocket).await?);
            let http =
                async || Ok(HttpClientBuilder::default().build(format!("http://{address}"))?);
            rounds[2].push(measure(clients, time, http).await?);
        }
        for (transport, figures) in ["pipe", "WebSocket", "HTTP"].iter().zip(rounds) {
            let Figures {
                requests_per_second,
                p99,
            } = median(figures);
            let p99 = three_digits(p99);
            println!("{clients:>7}  {transport:9}  {requests_per_second:>10.0}  {p99}");
        }
    }
    Ok(())
}

fn module() -> Result<RpcModule<()>, BoxError> {
    let mut module = RpcModule::new(());
    module.register_async_method("echo", |params, _, _| async move { params.one::<String>() })?;
    Ok(module)
}

/// Calls with so many clients for `time`, after a warm-up.
async fn measure<C: ClientT + Send + Sync + 'static>(
    clients: usize,
    time: Duration,
    connect: impl AsyncFn() -> Result<C, BoxError>,
) -> Result<Figures, BoxError> {
    let mut connected = Vec::new();
    for _ in 0..clients {
        let client = connect().await?;
        for _ in 0..WARM_UP {
            call(&client).await?;
        }
        connected.push(client);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in connected {
        tasks.spawn(call_until(client, begun + time));
    }
    let mut latencies = Vec::new();
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    let elapsed = begun.elapsed();
    latencies.sort_unstable();
    Ok(Figures {
        requests_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        p99: latencies[latencies.len() * 99 / 100],
    })
}

async fn call_until<C: ClientT>(client: C, deadline: Instant) -> Result<Vec<Duration>, BoxError>
where
    C: Send + Sync,
{
    let mut latencies = Vec::new();
    loop {
        let sent = Instant::now();
        if sent >= deadline && !latencies.is_empty() {
            return Ok(latencies);
        }
        call(&client).await?;
        latencies.push(sent.elapsed());
    }
}

fn call<C: ClientT + Sync>(client: &C) -> impl Future<Output = Result<(), BoxError>> + Send {
    async {
        let text = "a request of fifty bytes, which is a usual length.";
        let reply: String = client.request("echo", rpc_params![text]).await?;
        assert_eq!(reply, text);
        Ok(())
    }
}

fn median(mut rounds: Vec<Figures>) -> Figures {
    rounds.sort_by(|one, other| {
        one.requests_per_second
            .total_cmp(&other.requests_per_second)
    });
    let requests_per_second = rounds[rounds.len() / 2].requests_per_second;
    rounds.sort_by_key(|figures| figures.p99);
    Figures {
        requests_per_second,
        p99: rounds[rounds.len() / 2].p99,
    }
}

/// A time with three significant digits, for ratios.
fn three_digits(time: Duration) -> String {
    let before_point = time.as_nanos().max(1).ilog10() % 3 + 1;
    format!("{time:.*?}", 3 - before_point as usize)
}
