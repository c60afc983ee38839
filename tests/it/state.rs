//! The state that the handlers of a server share, as a user writes it, on every engine.

use std::{
    collections::HashMap,
    future::IntoFuture,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use pipe_server::{
    BoxError, ClientOptions, FromRef, Handler, ListenerOptions, Peer, Reply, Request, Session,
    State, serve,
};

use support::{Kind, on_every_engine};

on_every_engine! {
    twenty_tasks_share_one_store,
    a_handler_takes_a_part_of_the_state,
    a_handler_in_an_arc_is_a_handler,
    a_handler_that_is_not_a_function_has_the_state,
}

type Store = Arc<Mutex<HashMap<String, String>>>;

async fn store(
    State(store): State<Store>,
    requests: Session<AtomicU64>,
    request: String,
) -> Result<String, BoxError> {
    requests.fetch_add(1, Ordering::Relaxed);
    let mut store = store.lock().unwrap();
    match *request.split(' ').collect::<Vec<_>>() {
        ["set", key, value] => Ok(store
            .insert(key.into(), value.into())
            .unwrap_or_else(|| "new".into())),
        ["get", key] => Ok(store.get(key).cloned().unwrap_or_else(|| "nothing".into())),
        _ => Err("unknown request".into()),
    }
}

async fn twenty_tasks_share_one_store(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let values = Store::default();
    let serving = serve(listener, store)
        .with_state(Arc::clone(&values))
        .on_connect(|_| async { Ok::<_, BoxError>(AtomicU64::new(0)) });
    tokio::spawn(serving.into_future());
    let client = pipe.shared(&ClientOptions::new().shared());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let client = client.clone();
        tasks.spawn(async move {
            let reply = client
                .call(format!("set {number} {number}!"))
                .await
                .unwrap();
            assert_eq!(reply, "new");
            let reply = client.call(format!("get {number}")).await.unwrap();
            assert_eq!(reply, format!("{number}!"));
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(values.lock().unwrap().len(), 20);
}

#[derive(Clone)]
struct App {
    greeting: &'static str,
    requests: Arc<AtomicU64>,
}

impl FromRef<App> for Arc<AtomicU64> {
    fn from_ref(app: &App) -> Self {
        Arc::clone(&app.requests)
    }
}

async fn a_handler_takes_a_part_of_the_state(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let requests = Arc::new(AtomicU64::new(0));
    let app = App {
        greeting: "hello",
        requests: Arc::clone(&requests),
    };
    let greet = |State(app): State<App>, State(requests): State<Arc<AtomicU64>>, name: String| async move {
        requests.fetch_add(1, Ordering::Relaxed);
        format!("{} {name}", app.greeting)
    };
    tokio::spawn(serve(listener, greet).with_state(app).into_future());
    let mut client = pipe.connect().await;
    assert_eq!(client.call("Ann").await.unwrap(), "hello Ann");
    assert_eq!(client.call("Bob").await.unwrap(), "hello Bob");
    assert_eq!(requests.load(Ordering::Relaxed), 2);
}

struct Counter(AtomicU64);

impl Handler for Counter {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        let text: String = request.extract()?;
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Reply::new(format!("{text} {number}")))
    }
}

async fn a_handler_in_an_arc_is_a_handler(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let counter = Arc::new(Counter(AtomicU64::new(5)));
    tokio::spawn(serve(listener, Arc::clone(&counter)).into_future());
    let mut client = pipe.connect().await;
    assert_eq!(client.call("request").await.unwrap(), "request 5");
    assert_eq!(counter.0.load(Ordering::Relaxed), 6);
}

struct Greeter;

impl Handler<Request<App>, App> for Greeter {
    async fn call(&self, request: Request<App>) -> Result<Reply, BoxError> {
        let State(app) = request.extract::<State<App>>()?;
        let name = request.extract::<String>()?;
        Ok(Reply::new(format!("{} {name}", app.greeting)))
    }
}

async fn a_handler_that_is_not_a_function_has_the_state(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let app = App {
        greeting: "good day",
        requests: Arc::default(),
    };
    tokio::spawn(serve(listener, Greeter).with_state(app).into_future());
    let mut client = pipe.connect().await;
    assert_eq!(client.call("Ann").await.unwrap(), "good day Ann");
}

#[tokio::test]
async fn a_handler_with_state_is_called_like_a_function() {
    let values = Store::default();
    let request = Request::new("set color blue", Peer::current().unwrap())
        .with_state(Arc::clone(&values))
        .with_session(AtomicU64::new(0));
    let reply = Handler::call(&store, request).await.unwrap();
    assert_eq!(reply.message().unwrap(), "new");
    assert_eq!(values.lock().unwrap()["color"], "blue");
}
