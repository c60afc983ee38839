//! `--rpc`: one call of a JSON-RPC 2.0 server.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use pipe_server::Bytes;
use pipe_server_cli::{exit::Failure, runtime::within, streams::write_failure};
use serde_json::{Value, value::RawValue};
use tokio::signal::ctrl_c;

use crate::{codes, conversation::Conversation, options::Options, replies::Replies};

/// A request and what to do with its answer.
#[derive(Debug)]
pub(crate) struct Call {
    method: String,
    request: Bytes,
    subscribe: bool,
    /// The time limit for the answer.
    limit: Option<Duration>,
}

/// The members of an object. Their values are printed as the server has written them: a number may
/// have more digits than any type.
type Object<'a> = HashMap<String, &'a RawValue>;

impl Call {
    /// The call that `--rpc` asks for, if any.
    pub(crate) fn new(options: &Options) -> Result<Option<Self>, Failure> {
        let Some(method) = &options.rpc else {
            return Ok(None);
        };
        let quoted = Value::from(method.as_str());
        let mut request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":{quoted}"#);
        match &options.messages[..] {
            [] => {}
            [params] => match serde_json::from_str(params) {
                Ok(Value::Array(_) | Value::Object(_)) => {
                    request.push_str(r#","params":"#);
                    request.push_str(params);
                }
                Ok(_) => return Err(not_parameters(params, "it is neither")),
                Err(error) => return Err(not_parameters(params, &error.to_string())),
            },
            _ => {
                let problem = "--rpc takes one MESSAGE: all parameters in one JSON array or object";
                return Err(Failure::usage(problem.to_owned()));
            }
        }
        request.push('}');
        Ok(Some(Self {
            method: method.clone(),
            request: request.into(),
            subscribe: options.subscribe,
            limit: options.timeout(),
        }))
    }

    /// Prints the result, and then what a subscription sends.
    pub(crate) async fn run(
        self,
        conversation: &mut Conversation,
        replies: &mut Replies,
    ) -> Result<(), Failure> {
        let sent = Instant::now();
        let reply = conversation.exchange(self.request.clone()).await;
        let mut reply = reply.map_err(|error| conversation.failure(error))?;
        // A notification may precede the answer.
        let result = loop {
            let answer = self.parse(&reply)?;
            if let Some(error) = answer.get("error") {
                return Err(self.error(error));
            }
            if let Some(result) = answer.get("result") {
                break *result;
            }
            let limit = self.limit.unwrap_or(Duration::MAX);
            let left = limit.saturating_sub(sent.elapsed());
            // A server may always have another notification.
            if left.is_zero() {
                return Err(conversation.too_late(limit));
            }
            reply = match within(Some(left), conversation.unsolicited()).await {
                Some(reply) => reply?,
                None => return Err(conversation.too_late(limit)),
            };
        };
        let mut is_read = print(replies, result, sent)?;
        let mut interrupted = pin!(ctrl_c());
        while self.subscribe && is_read {
            let notification = tokio::select! {
                biased;
                _ = &mut interrupted => break,
                notification = conversation.unsolicited() => notification?,
            };
            let notification = self.parse(&notification)?;
            let Some(params) = notification.get("params") else {
                continue;
            };
            let inner = serde_json::from_str::<Object<'_>>(params.get()).unwrap_or_default();
            if let Some(error) = inner.get("error") {
                return Err(self.error(error));
            }
            is_read = print(
                replies,
                inner.get("result").unwrap_or(params),
                Instant::now(),
            )?;
        }
        Ok(())
    }

    fn parse<'a>(&self, message: &'a [u8]) -> Result<Object<'a>, Failure> {
        serde_json::from_slice(message).map_err(|error| {
            let method = &self.method;
            Failure::new(format!(
                "{method}: the server's message is not JSON-RPC: {error}"
            ))
        })
    }

    /// Describes an error object, with its code, its message and its data.
    fn error(&self, error: &RawValue) -> Failure {
        let object = serde_json::from_str::<Value>(error.get()).unwrap_or_default();
        let mut problem = match (object["code"].as_i64(), object["message"].as_str()) {
            (Some(code), Some(message)) => format!("{}: error {code}: {message}", self.method),
            _ => format!("{}: error {error}", self.method),
        };
        if let Some(data) = object.get("data") {
            problem = format!("{problem}: {data}");
        }
        Failure::new(problem).with_code(codes::RPC_ERROR)
    }
}

fn not_parameters(params: &str, problem: &str) -> Failure {
    Failure::usage(format!(
        "the parameters {params:?} are not an array or an object in JSON: {problem}"
    ))
}

/// Returns whether somebody still reads what is printed.
fn print(replies: &mut Replies, json: &RawValue, sent: Instant) -> Result<bool, Failure> {
    match replies.print(json.get().as_bytes(), sent.elapsed()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true).map_err(write_failure),
    }
}
