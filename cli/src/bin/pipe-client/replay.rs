//! `--replay`: sends recorded messages again, and compares what the server sends.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    pin::pin,
    time::Duration,
};

use pipe_server::{Bytes, Client, RecvHalf, SendHalf};
use pipe_server_cli::{
    exit::{Failure, chain},
    recording::Sender,
    runtime::within,
    streams,
};
use tokio::{
    select,
    time::{Instant, sleep_until},
};

use self::{
    report::{Got, Report},
    steps::Step,
};
use crate::{codes, connect_failure, options::Options};

pub(crate) use self::options::ReplayOptions;

mod options;
mod report;
mod steps;

/// The time in which a server ends a conversation that its client has ended. Until then it may send
/// messages that were not recorded.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of messages of a server that are kept while it takes a message. Further ones stay in
/// the pipe.
const MOST_EARLY: usize = 1024;

/// Replays the dump at `path`.
pub(crate) async fn run(options: &Options, path: &Path) -> Result<(), Failure> {
    let steps = steps::read(path, options.longest_message())?;
    let mut replay = Replay {
        options,
        limit: options.timeout(),
        begun: Instant::now(),
        connections: HashMap::new(),
        report: Report::default(),
    };
    for step in &steps {
        replay.step(step).await?;
    }
    let report = replay.report;
    streams::print(report.summary().as_bytes())?;
    match report.different {
        0 => Ok(()),
        _ => Err(Failure::new(format!(
            "the server's messages differ from those in {}",
            path.display()
        ))
        .with_code(codes::DIFFERENT)),
    }
}

struct Replay<'a> {
    options: &'a Options,
    /// The time limit of the server for sending a recorded message, or taking one.
    limit: Option<Duration>,
    begun: Instant,
    /// The connections that have begun, by their indices. `None` once one has ended.
    connections: HashMap<usize, Option<Connection>>,
    report: Report,
}

impl Replay<'_> {
    /// Sends a message of the client, or awaits one of the server.
    async fn step(&mut self, step: &Step) -> Result<(), Failure> {
        if step.sender == Sender::Client {
            let due = self.options.replay.replay_speed.due(step.time);
            if let Some(due) = self.begun.checked_add(due) {
                sleep_until(due).await;
            }
        }
        let Some(mut connection) = self.connection(step).await? else {
            self.report.skipped += 1;
            return Ok(());
        };
        let lives = match step.sender {
            Sender::Client => self.send(step, &mut connection).await?,
            Sender::Server => self.receive(step, &mut connection).await?,
        };
        if !lives {
            return Ok(());
        }
        if step.is_last {
            return self.end(step, connection).await;
        }
        self.connections.insert(step.connection, Some(connection));
        Ok(())
    }

    /// Takes the connection of a step, which is opened for its first one. `None` if it has ended.
    async fn connection(&mut self, step: &Step) -> Result<Option<Connection>, Failure> {
        if let Some(connection) = self.connections.get_mut(&step.connection) {
            return Ok(connection.take());
        }
        let connected = self.options.client().connect(&self.options.pipe_name).await;
        let client = connected.map_err(|error| connect_failure(error, self.options))?;
        self.connections.insert(step.connection, None);
        self.report.connections += 1;
        Ok(Some(Connection::new(client)))
    }

    /// Returns whether the connection can still be used.
    async fn send(&mut self, step: &Step, connection: &mut Connection) -> Result<bool, Failure> {
        match connection.send(step.message.clone(), self.limit).await {
            Ok(()) => {
                self.report.sent += 1;
                Ok(true)
            }
            Err(why) => self.report.unsent(step, &why).map(|()| false),
        }
    }

    /// Returns whether the connection can still be used.
    async fn receive(&mut self, step: &Step, connection: &mut Connection) -> Result<bool, Failure> {
        match connection.receive(self.limit).await {
            Ok(message) => {
                let got = Got::Message(&message);
                self.report.compare(step, &got).map(|()| true)
            }
            Err(why) => {
                let got = Got::Nothing(&why);
                self.report.compare(step, &got).map(|()| false)
            }
        }
    }

    /// Ends the conversation after its last step. The server should have nothing more to say.
    async fn end(&mut self, last: &Step, mut connection: Connection) -> Result<(), Failure> {
        // Fails if the server has ended it before.
        _ = connection.sender.finish().await;
        let limit = self.limit.unwrap_or(END_TIMEOUT).min(END_TIMEOUT);
        let receiving = async {
            for number in last.number + 1.. {
                let Ok(message) = connection.receive(None).await else {
                    break;
                };
                self.report
                    .one_too_many(last.recorded_connection, number, &message)?;
            }
            Ok(())
        };
        // A server that sends without being asked may never end.
        within(Some(limit), receiving).await.unwrap_or(Ok(()))
    }
}

/// A connection of the replay.
struct Connection {
    receiver: RecvHalf,
    sender: SendHalf,
    /// Messages that came while another one was sent.
    early: VecDeque<Bytes>,
    /// The reason why nothing more can be received.
    ended: Option<String>,
}

impl Connection {
    fn new(client: Client) -> Self {
        let (receiver, sender) = client.into_split();
        Self {
            receiver,
            sender,
            early: VecDeque::new(),
            ended: None,
        }
    }

    /// Sends a message, or says why it can't. Receives meanwhile: a server may not take it before
    /// its own messages are read.
    async fn send(&mut self, message: Bytes, limit: Option<Duration>) -> Result<(), String> {
        let Self {
            receiver,
            sender,
            early,
            ended,
        } = self;
        let mut sending = pin!(sender.send(message));
        let sent = within(limit, async {
            loop {
                select! {
                    biased;
                    sent = &mut sending => return sent,
                    received = receiver.recv(), if ended.is_none() && early.len() < MOST_EARLY => {
                        match message_or_end(received) {
                            Ok(message) => early.push_back(message),
                            Err(why) => *ended = Some(why),
                        }
                    }
                }
            }
        });
        match sent.await {
            Some(sent) => sent.map_err(|error| chain(&error)),
            None => Err("the server does not read it in time: see --timeout".to_owned()),
        }
    }

    /// Receives a message, or says why there is none.
    async fn receive(&mut self, limit: Option<Duration>) -> Result<Bytes, String> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        if let Some(why) = &self.ended {
            return Err(why.clone());
        }
        match within(limit, self.receiver.recv()).await {
            Some(received) => message_or_end(received).inspect_err(|why| {
                self.ended = Some(why.clone());
            }),
            None => Err("the server does not send it in time: see --timeout".to_owned()),
        }
    }
}

fn message_or_end(
    received: Result<Option<Bytes>, pipe_server::RecvError>,
) -> Result<Bytes, String> {
    match received {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err("the server has closed the connection".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}
