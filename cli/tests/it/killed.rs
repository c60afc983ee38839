//! A server that is killed again and again, with SIGKILL on Unix, while many tasks call it through
//! one shared client: every call ends, and says what became of its request.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use pipe_server::{ClientOptions, SharedCallError, SharedClient};
use support::{UniqueName, in_time, unique_name};
use tokio::{sync::watch, task::JoinSet};

use crate::program::Server;

const TASKS: usize = 8;

/// How often the server is killed. Wine takes longer to start one.
const KILLS: usize = if cfg!(windows) { 8 } else { 30 };

/// How many replies each server brings before it is killed.
const REPLIES: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    NotExecuted,
    Unknown,
}

/// What the tasks share.
struct Calls {
    client: SharedClient,
    answered: watch::Sender<usize>,
    is_over: AtomicBool,
}

impl Calls {
    /// Calls until it is over. Returns each request with what became of it.
    async fn make(&self, task: usize) -> Vec<(String, Outcome)> {
        let mut outcomes = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let request = format!("{task}:{}", outcomes.len());
            let outcome = match self.client.call(request.clone()).await {
                Ok(reply) => {
                    assert_eq!(reply, request);
                    self.answered.send_modify(|count| *count += 1);
                    Outcome::Answered
                }
                Err(SharedCallError::NotExecuted(_)) => Outcome::NotExecuted,
                Err(SharedCallError::Unanswered(_)) => Outcome::Unknown,
            };
            outcomes.push((request, outcome));
        }
        outcomes
    }

    /// Waits for some replies more.
    async fn go_on(&self) {
        let mut answered = self.answered.subscribe();
        let enough = *answered.borrow() + REPLIES;
        let reached = answered.wait_for(|answered| *answered >= enough);
        reached.await.expect("the sender is in `self`");
    }
}

/// Starts a server. Until all clients have noticed the end of the last one, Windows may say that
/// the pipe is still served.
fn start(name: &UniqueName, arguments: &[&str]) -> Server {
    loop {
        let server = Server::start(name, arguments);
        if server.first_line.starts_with("listening") {
            return server;
        }
    }
}

async fn kill_again_and_again(
    name: &UniqueName,
    arguments: &[&str],
    connections: usize,
) -> Vec<(String, Outcome)> {
    let mut server = start(name, arguments);
    let options = ClientOptions::new().wait_for_server(true).shared();
    let options = options.connections(connections);
    let calls = Arc::new(Calls {
        client: options.connect_lazy(&name.text).unwrap(),
        answered: watch::Sender::new(0),
        is_over: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let calls = Arc::clone(&calls);
        tasks.spawn(async move { calls.make(task).await });
    }
    for _ in 0..KILLS {
        calls.go_on().await;
        // Dropping it kills it.
        drop(server);
        server = start(name, arguments);
    }
    calls.go_on().await;
    calls.is_over.store(true, Ordering::Relaxed);
    tasks.join_all().await.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_ends_with_its_own_reply_or_says_what_became_of_it() {
    for connections in [1, 4] {
        in_time(async {
            let name = unique_name();
            let outcomes = kill_again_and_again(&name, &["--echo"], connections).await;
            let answered = outcomes
                .iter()
                .filter(|(_, outcome)| *outcome == Outcome::Answered);
            assert!(answered.count() >= KILLS * REPLIES);
        })
        .await;
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_called_not_executed_was_not_and_nothing_is_executed_twice() {
    use std::{collections::HashMap, fs};

    in_time(async {
        let name = unique_name();
        let record = format!("{}.record", name.text);
        // First the record, then the reply.
        let command =
            format!("while read -r line; do echo \"$line\" >> '{record}'; echo \"$line\"; done");
        let arguments = ["--exec-mode", "lines", "--exec", &command];
        let outcomes = kill_again_and_again(&name, &arguments, 1).await;
        let record = fs::read_to_string(&record).unwrap();
        let mut executed = HashMap::<&str, usize>::new();
        for line in record.lines() {
            *executed.entry(line).or_default() += 1;
        }
        let mut unknown = 0;
        for (request, outcome) in &outcomes {
            let times = executed.get(&**request).copied().unwrap_or(0);
            let expected = match outcome {
                Outcome::Answered => times == 1,
                Outcome::NotExecuted => times == 0,
                Outcome::Unknown => times <= 1,
            };
            assert!(expected, "{request}: {outcome:?}, executed {times} times");
            unknown += usize::from(*outcome == Outcome::Unknown);
        }
        // It was killed while calls were in flight.
        assert!(unknown > 0);
    })
    .await;
}
