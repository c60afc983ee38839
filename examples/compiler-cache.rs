//! A compiler cache in miniature: each compiler call asks a daemon, which the first call starts and
//! which ends when nobody has needed it for a while.
//!
//! Run `cargo run --example compiler-cache -- SOURCE...`, and again.

use std::{
    collections::HashMap,
    env,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use pipe_server::{BoxError, Client, ClientOptions, PipeListener, serve};

/// The argument with which this program is the daemon.
const DAEMON: &str = "--daemon";

const NAME: &str = "compiler-cache-example";

const IDLE_TIME: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if arguments == [DAEMON] {
        return run_daemon(NAME, IDLE_TIME).await;
    }
    let mut daemon = Command::new(env::current_exe()?);
    daemon.arg(DAEMON);
    let mut cache = connect(NAME, daemon).await?;
    for source in arguments {
        println!("{source}: {:?}", cache.call(source.clone()).await?);
    }
    Ok(())
}

/// Connects to the daemon, and starts it if it is not running.
async fn connect(name: &str, daemon: Command) -> Result<Client, BoxError> {
    Ok(ClientOptions::new()
        .start_server(daemon)
        .connect(name)
        .await?)
}

/// Compiles each source once, until no compiler call has been connected for `idle_time`.
async fn run_daemon(name: &str, idle_time: Duration) -> Result<(), BoxError> {
    let listener = PipeListener::bind(name)?;
    let objects = Arc::new(Mutex::new(HashMap::<String, String>::new()));
    let answer = move |source: String| {
        let objects = Arc::clone(&objects);
        async move {
            let mut objects = objects.lock().unwrap();
            match objects.get(&source) {
                Some(object) => format!("cached {object}"),
                None => {
                    let object = compile(&source);
                    objects.insert(source, object.clone());
                    format!("compiled {object}")
                }
            }
        }
    };
    serve(listener, answer).shutdown_when_idle(idle_time).await;
    Ok(())
}

/// Stands for a compiler.
fn compile(source: &str) -> String {
    format!("{source}.o")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon, when the test below starts this program with the variable set.
    #[tokio::test]
    async fn daemon() {
        if let Ok(name) = env::var("COMPILER_CACHE_EXAMPLE") {
            run_daemon(&name, Duration::from_millis(500)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_first_call_starts_the_daemon_and_the_second_finds_it() {
        let name = format!("compiler-cache-example-{}", std::process::id());
        let daemon = || {
            let mut daemon = Command::new(env::current_exe().unwrap());
            daemon
                .args(["tests::daemon", "--exact"])
                .env("COMPILER_CACHE_EXAMPLE", &name);
            daemon
        };
        let mut first = connect(&name, daemon()).await.unwrap();
        assert_eq!(first.call("main.c").await.unwrap(), "compiled main.c.o");
        let mut second = connect(&name, daemon()).await.unwrap();
        assert_eq!(second.call("main.c").await.unwrap(), "cached main.c.o");
        drop((first, second));
        // It ends when nobody needs it: each look at it is a client.
        while Client::connect(name.as_str()).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
