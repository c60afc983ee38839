//! A handler with state: a key-value store shared by all clients, and a counter for each client.
//!
//! Run `cargo run --example stateful`, and in another terminal
//! `cargo run --bin pipe-client -- --pipe-name store "set color blue" "get color"`.

use std::{
    collections::HashMap,
    future::IntoFuture,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use pipe_server::{BoxError, ConnectionInfo, PipeListener, ServeFuture, Session, State, serve};

type Store = Arc<Mutex<HashMap<String, String>>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("store")?;
    println!("listening on {}", listener.path().display());
    server(listener).await;
    Ok(())
}

fn server(listener: PipeListener) -> ServeFuture {
    serve(listener, answer)
        .with_state(Store::default())
        .on_connect(|_: ConnectionInfo| async { Ok::<_, BoxError>(AtomicU64::new(0)) })
        .into_future()
}

/// The store is shared by all clients, and the number of requests is this client's alone.
async fn answer(State(store): State<Store>, requests: Session<AtomicU64>, text: String) -> String {
    let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut values = store.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = match words[..] {
        ["get", key] => values.get(key).cloned().unwrap_or_default(),
        ["set", key, value] => values.insert(key.into(), value.into()).unwrap_or_default(),
        _ => "write: get KEY, or: set KEY VALUE".into(),
    };
    format!("{number}: {reply}")
}

#[cfg(test)]
mod tests {
    use pipe_server::Client;

    use super::*;

    #[tokio::test]
    async fn values_are_shared_and_counts_are_not() {
        let name = format!("stateful-example-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        tokio::spawn(server(listener));
        let mut one = Client::connect(&name).await.unwrap();
        let mut other = Client::connect(&name).await.unwrap();
        assert_eq!(one.call("set color blue").await.unwrap(), "1: ");
        assert_eq!(one.call("get color").await.unwrap(), "2: blue");
        assert_eq!(other.call("get color").await.unwrap(), "1: blue");
        assert!(other.call("what?").await.unwrap().starts_with(b"2: write"));
    }
}
