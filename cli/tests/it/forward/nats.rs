//! With a real NATS server.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::{BufRead as _, BufReader},
    path::Path,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use async_nats::{HeaderMap, Message, Subscriber};
use futures_core::Stream as _;
use pipe_server::{Bytes, Client};
use rustix::process::Signal;
use support::{DEADLINE, UniqueName, in_time, unique_name};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::sleep,
};

use crate::program::{Server, server};

/// A nats-server that is killed when dropped.
struct Nats {
    child: Child,
    port: u16,
}

impl Nats {
    fn start(arguments: &[&str]) -> Self {
        // It chooses a free one.
        Self::start_on("-1", arguments)
    }

    /// Starts it and waits until clients can connect.
    fn start_on(port: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["--addr", "127.0.0.1", "--port", port])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("there is no nats-server: install Debian's package of that name");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Read to the end, so that it never waits for this test.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                _ = sender.send(line);
            }
        });
        let mut nats = Self { child, port: 0 };
        loop {
            let line = lines.recv_timeout(DEADLINE).expect("it does not start");
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                nats.port = address.rsplit(':').next().unwrap().parse().unwrap();
            } else if line.contains("Server is ready") {
                return nats;
            }
        }
    }

    /// Kills it and starts it again, on the same port.
    fn restart(&mut self) {
        let port = self.port;
        self.kill();
        *self = Self::start_on(&port.to_string(), &[]);
    }

    fn kill(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The value of `--forward`.
    fn subject(&self) -> String {
        format!("{}/{SUBJECT}", self.url())
    }

    async fn connect(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Answers every request with what `reply` says, if anything, until the runtime shuts down.
    async fn work<R>(&self, mut reply: impl FnMut(&Message) -> R + Send + 'static)
    where
        R: Into<Option<Bytes>>,
    {
        let client = self.connect().await;
        let mut requests = subscribe(&client).await;
        tokio::spawn(async move {
            while let Some(request) = next(&mut requests).await {
                if let Some(reply) = reply(&request).into() {
                    let inbox = request.reply.unwrap();
                    client.publish(inbox, reply).await.unwrap();
                }
            }
        });
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

const SUBJECT: &str = "test.requests";

/// Debian installs it where only root's PATH looks.
fn program() -> &'static str {
    let sbin = "/usr/sbin/nats-server";
    match Path::new(sbin).exists() {
        true => sbin,
        false => "nats-server",
    }
}

/// Subscribes as one of the workers. The server knows when this returns.
async fn subscribe(client: &async_nats::Client) -> Subscriber {
    let requests = client.queue_subscribe(SUBJECT, "workers".to_owned()).await;
    let requests = requests.unwrap();
    // A request of its own comes back after the subscription went out, on the same connection.
    let probe = client.new_inbox();
    let mut probes = client.subscribe(probe.clone()).await.unwrap();
    client.publish(probe, "probe".into()).await.unwrap();
    next(&mut probes).await.unwrap();
    requests
}

async fn next(subscriber: &mut Subscriber) -> Option<Message> {
    poll_fn(|cx| Pin::new(&mut *subscriber).poll_next(cx)).await
}

fn forward(name: &UniqueName, url: &str, arguments: &[&str]) -> Server {
    let arguments = [arguments, &["--forward", url]].concat();
    Server::spawn(server(name, &arguments).stderr(Stdio::piped()))
}

async fn connect(name: &UniqueName) -> Client {
    Client::connect(&name.text).await.unwrap()
}

/// One call, which fails.
async fn fail(name: &UniqueName, request: &str) {
    let mut client = connect(name).await;
    client.call(request.to_owned()).await.unwrap_err();
}

/// A worker of its own, which answers with the request until its `last` one. It keeps that one, and
/// its runtime comes out of the channel, to be killed.
struct Mortal {
    runtime: Runtime,
    kept: UnboundedReceiver<()>,
}

type Executed = Arc<Mutex<HashMap<Bytes, u32>>>;

fn echo(executed: &Executed) -> impl Fn(&Message) -> Bytes + Send + 'static {
    let executed = Arc::clone(executed);
    move |request| {
        let payload = request.payload.clone();
        *executed.lock().unwrap().entry(payload.clone()).or_default() += 1;
        payload
    }
}

async fn mortal(nats: &Nats, executed: &Executed, last: u32) -> Mortal {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (sender, kept) = unbounded_channel();
    let (echo, mut count, url) = (echo(executed), 0, nats.url());
    let ready = runtime.spawn(async move {
        let client = async_nats::connect(url).await.unwrap();
        let mut requests = subscribe(&client).await;
        tokio::spawn(async move {
            while let Some(request) = next(&mut requests).await {
                let reply = echo(&request);
                count += 1;
                if count >= last {
                    _ = sender.send(());
                    continue;
                }
                client.publish(request.reply.unwrap(), reply).await.unwrap();
            }
        });
    });
    ready.await.unwrap();
    Mortal { runtime, kept }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_costs_its_requests_and_the_others_go_on() {
    const CLIENTS: usize = 4;
    const CALLS: usize = 25;

    in_time(async {
        let nats = Nats::start(&[]);
        let executed = Executed::default();
        nats.work(echo(&executed)).await;
        let mut dying = mortal(&nats, &executed, 5).await;
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "2s"]);

        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let name = name.text.clone();
                tokio::spawn(async move {
                    let mut failed = 0;
                    let mut client = Client::connect(&name).await.unwrap();
                    for call in 0..CALLS {
                        let request = format!("{number}:{call}");
                        match client.call(request.clone()).await {
                            Ok(reply) => assert_eq!(reply, request),
                            Err(_) => {
                                failed += 1;
                                client = Client::connect(&name).await.unwrap();
                            }
                        }
                    }
                    failed
                })
            })
            .collect();
        dying.kept.recv().await.unwrap();
        dying.runtime.shutdown_background();
        let mut failed = 0;
        for client in clients {
            failed += client.await.unwrap();
        }
        assert!(failed > 0);
        server.log().wait_for("reason=\"handler_timeout\"");

        // The other one answers.
        let mut client = connect(&name).await;
        for number in 0..20 {
            let request = format!("afterwards {number}");
            assert_eq!(client.call(request.clone()).await.unwrap(), request);
        }
        let executed = executed.lock().unwrap();
        assert!(executed.values().all(|&count| count == 1), "{executed:?}");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_nobody_answers_fails_at_once() {
    in_time(async {
        let nats = Nats::start(&[]);
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "none"]);
        fail(&name, "hello").await;
        server
            .log()
            .wait_for("nobody answers on the subject test.requests");
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_nats_server_that_starts_later() {
    in_time(async {
        let mut nats = Nats::start(&[]);
        nats.kill();
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "50s"]);
        let line = server.log().wait_for("can't connect to the NATS server");
        assert!(line.contains(&nats.url()), "{line}");

        nats.restart();
        nats.work(|request| request.payload.clone()).await;
        assert_eq!(connect(&name).await.call("hello").await.unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_for_the_nats_server_up_to_its_timeout() {
    in_time(async {
        let mut nats = Nats::start(&[]);
        nats.kill();
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "100ms"]);
        fail(&name, "hello").await;
        server.log().wait_for("reason=\"handler_timeout\"");
    })
    .await;
}

#[tokio::test]
async fn a_restart_of_the_nats_server_is_survived() {
    in_time(async {
        let mut nats = Nats::start(&[]);
        nats.work(|_| Bytes::from("before")).await;
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "50s"]);
        let mut client = connect(&name).await;
        assert_eq!(client.call("hello").await.unwrap(), "before");
        server.log().wait_for("connected to the NATS server");

        nats.kill();
        server.log().wait_for("is lost");
        nats.restart();
        server.log().wait_for("connected to the NATS server");
        nats.work(|_| Bytes::from("after")).await;
        // Whichever worker answers: the first one reconnects as well.
        let reply = client.call("hello").await.unwrap();
        assert!(reply == "after" || reply == "before", "{reply:?}");
    })
    .await;
}

#[tokio::test]
async fn a_reply_is_taken_on_the_next_connection_too() {
    in_time(async {
        let mut nats = Nats::start(&[]);
        let worker = nats.connect().await;
        let mut requests = subscribe(&worker).await;
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &["--handler-timeout", "50s"]);
        let mut client = connect(&name).await;
        client.send("hello").await.unwrap();
        let inbox = next(&mut requests).await.unwrap().reply.unwrap();
        nats.restart();
        server.log().wait_for("is lost");
        // Until the server has subscribed again.
        let replying = async {
            loop {
                worker.publish(inbox.clone(), "late".into()).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = replying => {}
            reply = client.recv() => assert_eq!(reply.unwrap().unwrap(), "late"),
        }
    })
    .await;
}

#[tokio::test]
async fn what_no_message_can_carry_is_refused() {
    in_time(async {
        let name = unique_name();
        let config = Path::new(&name.text).with_file_name("nats.conf");
        std::fs::write(&config, "max_payload: 1000\n").unwrap();
        let nats = Nats::start(&["--config", config.to_str().unwrap()]);
        nats.work(|request| match &*request.payload {
            b"empty" => Bytes::new(),
            length => {
                let length = std::str::from_utf8(length).unwrap();
                Bytes::from("x".repeat(length.parse().unwrap()))
            }
        })
        .await;
        let limit = ["--max-message-size", "500"];
        let server = forward(&name, &nats.subject(), &limit);
        assert_eq!(connect(&name).await.call("500").await.unwrap().len(), 500);
        fail(&name, "501").await;
        server
            .log()
            .wait_for("the reply has 501 bytes, more than 500");
        fail(&name, "empty").await;
        server.log().wait_for("the reply is empty");

        let name = unique_name();
        let server = forward(&name, &nats.subject(), &[]);
        fail(&name, &"1".repeat(1001)).await;
        let line = server.log().wait_for("the request has 1001 bytes");
        assert!(line.contains("max_payload"), "{line}");
        // Nothing was sent, and so the connection is still there.
        assert_eq!(connect(&name).await.call("10").await.unwrap().len(), 10);
    })
    .await;
}

#[tokio::test]
async fn an_error_reply_is_no_answer() {
    in_time(async {
        let nats = Nats::start(&[]);
        let worker = nats.connect().await;
        let mut requests = subscribe(&worker).await;
        let name = unique_name();
        let server = forward(&name, &nats.subject(), &[]);
        let mut client = connect(&name).await;
        client.send("hello").await.unwrap();
        let request = next(&mut requests).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", "404");
        headers.insert("Nats-Service-Error", "no such thing");
        let inbox = request.reply.unwrap();
        worker
            .publish_with_headers(inbox, headers, "body".into())
            .await
            .unwrap();
        assert!(client.recv().await.unwrap().is_none());
        server.log().wait_for("(404): no such thing");
    })
    .await;
}

#[tokio::test]
async fn only_the_first_reply_counts() {
    in_time(async {
        let nats = Nats::start(&[]);
        let worker = nats.connect().await;
        let mut requests = subscribe(&worker).await;
        let name = unique_name();
        let _server = forward(&name, &nats.subject(), &[]);
        let mut client = connect(&name).await;
        for number in 0..10 {
            client.send("hello").await.unwrap();
            let inbox = next(&mut requests).await.unwrap().reply.unwrap();
            for copy in ["first", "second"] {
                let reply = format!("{copy} {number}").into();
                worker.publish(inbox.clone(), reply).await.unwrap();
            }
            let reply = client.recv().await.unwrap().unwrap();
            assert_eq!(reply, format!("first {number}"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_for_the_limit_and_ends_with_its_client() {
    in_time(async {
        let nats = Nats::start(&[]);
        let worker = nats.connect().await;
        let mut requests = subscribe(&worker).await;
        let name = unique_name();
        let limit = ["-v", "--forward-limit", "1"];
        let server = forward(&name, &nats.subject(), &limit);
        let mut first = connect(&name).await;
        first.send("first").await.unwrap();
        assert_eq!(next(&mut requests).await.unwrap().payload, "first");
        let mut second = connect(&name).await;
        second.send("second").await.unwrap();
        server.log().wait_for("--forward-limit");

        // It frees its place without a reply.
        drop(first);
        let request = next(&mut requests).await.unwrap();
        assert_eq!(request.payload, "second");
        let inbox = request.reply.unwrap();
        worker.publish(inbox, "reply".into()).await.unwrap();
        assert_eq!(second.recv().await.unwrap().unwrap(), "reply");
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_lets_requests_in_flight_finish() {
    in_time(async {
        let nats = Nats::start(&[]);
        let worker = nats.connect().await;
        let mut requests = subscribe(&worker).await;
        let name = unique_name();
        let mut server = forward(&name, &nats.subject(), &[]);
        let mut client = connect(&name).await;
        client.send("hello").await.unwrap();
        let request = next(&mut requests).await.unwrap();
        server.signal(Signal::TERM);
        server.log().wait_for("SIGTERM");
        let inbox = request.reply.unwrap();
        worker.publish(inbox, "reply".into()).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), "reply");
        drop(client);
        assert_eq!(server.ended().0, Some(0));
    })
    .await;
}

#[tokio::test]
async fn credentials_are_not_in_the_log() {
    in_time(async {
        let nats = Nats::start(&["--user", "ann", "--pass", "s3cret"]);
        for (password, said) in [("s3cret", "connected to"), ("wr0ng", "can't connect to")] {
            let name = unique_name();
            let url = format!("nats://ann:{password}@127.0.0.1:{}/{SUBJECT}", nats.port);
            let mut server = server(&name, &[]);
            server
                .env("PIPE_SERVER_FORWARD", url)
                .env("RUST_LOG", "trace");
            let server = Server::spawn(server.stderr(Stdio::piped()));
            let mut log = server.log().up_to(said).join("\n");
            assert!(log.contains(&nats.url()), "{log}");
            if password == "s3cret" {
                fail(&name, "nobody answers").await;
            }
            log += &server.killed_log();
            assert!(!log.contains(password), "{log}");
            // It is that detailed.
            assert!(log.contains("TRACE"), "{log}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_is_sent() {
    in_time(async {
        let nats = Nats::start(&["--auth", "t0ken/"]);
        let name = unique_name();
        let url = format!("nats://t0ken%2F@127.0.0.1:{}/{SUBJECT}", nats.port);
        let server = forward(&name, &url, &[]);
        server.log().wait_for("connected to the NATS server");
    })
    .await;
}

/// The certificate is one of its own for localhost, until 2126: openssl req -x509 -newkey ec
/// -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost -addext
/// subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout localhost.key
/// -out localhost.pem
#[tokio::test]
async fn with_tls_the_server_has_to_be_the_one_of_the_url() {
    in_time(async {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/forward/tls");
        let certificate = directory.join("localhost.pem");
        let certificate = certificate.to_str().unwrap();
        let key = directory.join("localhost.key");
        let key = key.to_str().unwrap();
        let tls = ["--tls", "--tlscert", certificate, "--tlskey", key];
        let (with_tls, without) = (Nats::start(&tls), Nats::start(&[]));
        let empty = unique_name();
        std::fs::write(&empty.text, "").unwrap();
        let log = |scheme: &str, host: &str, nats: &Nats, trusted: &str, said: &str| {
            let name = unique_name();
            let url = format!("{scheme}://{host}:{}/{SUBJECT}", nats.port);
            let mut server = server(&name, &["--forward", &url]);
            server.env("SSL_CERT_FILE", trusted).stderr(Stdio::piped());
            Server::spawn(&mut server).log().wait_for(said);
        };
        log("tls", "localhost", &with_tls, certificate, "connected to");
        // The NATS server asks for TLS.
        log("nats", "localhost", &with_tls, certificate, "connected to");
        log("tls", "localhost", &with_tls, &empty.text, "can't connect");
        log("tls", "127.0.0.1", &with_tls, certificate, "can't connect");
        log("tls", "localhost", &without, certificate, "can't connect");
    })
    .await;
}
