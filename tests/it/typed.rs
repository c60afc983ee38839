//! What the features `json` and `postcard` add, on every engine.

use std::{
    collections::HashMap,
    error::Error,
    future::{Future, IntoFuture, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use futures_util::FutureExt;
use pipe_server::{
    BoxError, Bytes, CallError, ClientOptions, Connection, FromRequest, Handler, IntoReply, Json,
    JsonCallError, JsonRecvError, JsonRejection, JsonSendError, ListenerOptions, Peer, Postcard,
    PostcardCallError, PostcardRejection, Reason, Request, SendError, Shutdown, Summary, serve,
    serve_connections,
};
use proptest::{collection::vec, prelude::*};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Mutex, mpsc},
    task::yield_now,
};

use support::{Kind, Pipe, log::Log, on_every_engine, server::Server};

on_every_engine! {
    requests_and_replies_are_values,
    a_result_tells_the_client_a_refusal_from_an_answer,
    a_message_of_another_form_ends_its_conversation_and_is_logged,
    a_handler_that_takes_the_result_answers_what_is_rejected,
    a_message_that_nests_too_deeply_is_rejected,
    bytes_after_a_value_are_rejected,
    a_value_that_is_encoded_as_nothing_goes_round,
    a_reply_that_can_not_be_encoded_ends_its_conversation_and_is_logged,
    a_reply_over_the_limit_ends_its_conversation_and_is_logged,
    a_request_that_can_not_be_encoded_or_is_too_long_sends_nothing,
    a_client_that_can_not_decode_a_reply_can_call_again,
    the_reply_to_a_dropped_call_is_not_taken_for_another,
    the_documented_messages_are_those_on_the_pipe,
    a_shared_client_calls_with_values,
    connections_halves_and_clients_exchange_values,
    a_message_that_can_not_be_encoded_sends_nothing,
    a_message_that_can_not_be_decoded_is_followed_by_the_next,
    a_task_that_can_not_decode_a_message_blames_its_client,
    a_task_that_can_not_decode_what_another_sent_blames_itself,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Division {
    dividend: i32,
    divisor: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Refusal {
    code: u16,
    message: String,
}

fn divide(Division { dividend, divisor }: Division) -> Result<i32, Refusal> {
    dividend.checked_div(divisor).ok_or_else(|| Refusal {
        code: 422,
        message: "division by 0".to_owned(),
    })
}

/// Each level takes one byte in postcard: the length of its list.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Nested(Vec<Self>);

/// Serves until the runtime of the test ends.
fn start<T: 'static>(kind: Kind, handler: impl Handler<T>) -> Pipe {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    tokio::spawn(serve(listener, handler).into_future());
    pipe
}

/// The error and its sources, as they are logged.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

async fn requests_and_replies_are_values(kind: Kind) {
    let request = Division {
        dividend: 7,
        divisor: 2,
    };

    let pipe = start(kind, |Json(mut division): Json<Division>| async move {
        division.dividend += 1;
        Json(division)
    });
    let mut client = pipe.connect().await;
    let reply: Division = client.call_json(&request).await.unwrap();
    assert_eq!((reply.dividend, reply.divisor), (8, 2));
    let reply = client.call(r#"{"divisor": 3, "dividend": 4}"#).await;
    assert_eq!(reply.unwrap(), r#"{"dividend":5,"divisor":3}"#);
    // Unsized values are sent as well.
    let pipe = start(
        kind,
        |Json(text): Json<String>| async move { Json(text.len()) },
    );
    let mut client = pipe.connect().await;
    assert_eq!(client.call_json::<usize>("four").await.unwrap(), 4);

    let pipe = start(
        kind,
        |Postcard(mut division): Postcard<Division>, peer: Peer| async move {
            assert_eq!(peer.process_id(), std::process::id());
            division.dividend += 1;
            Postcard(division)
        },
    );
    let mut client = pipe.connect().await;
    let reply: Division = client.call_postcard(&request).await.unwrap();
    assert_eq!((reply.dividend, reply.divisor), (8, 2));
    // Integers are zigzag varints.
    assert_eq!(client.call(vec![8, 6]).await.unwrap(), vec![10, 6]);
}

async fn a_result_tells_the_client_a_refusal_from_an_answer(kind: Kind) {
    let json = start(kind, |Json(division): Json<Division>| async move {
        Json(divide(division))
    });
    let postcard = start(kind, |Postcard(division): Postcard<Division>| async move {
        Postcard(divide(division))
    });
    let (mut json, mut postcard) = (json.connect().await, postcard.connect().await);
    for (divisor, expected) in [(2, Some(3)), (0, None), (7, Some(1))] {
        let request = Division {
            dividend: 7,
            divisor,
        };
        let reply: Result<i32, Refusal> = json.call_json(&request).await.unwrap();
        assert_eq!(reply, divide(request.clone()));
        assert_eq!(reply.ok(), expected);
        let reply: Result<i32, Refusal> = postcard.call_postcard(&request).await.unwrap();
        assert_eq!(reply, divide(request));
        assert_eq!(reply.ok(), expected);
    }
}

async fn a_message_of_another_form_ends_its_conversation_and_is_logged(kind: Kind) {
    let log = Log::start();
    let json = start(kind, |Json(division): Json<Division>| async move {
        Json(divide(division))
    });
    let postcard = start(kind, |Postcard(division): Postcard<Division>| async move {
        Postcard(divide(division))
    });
    let good = r#"{"dividend":6,"divisor":3}"#.as_bytes();
    for (pipe, good, bad, reason) in [
        (
            &json,
            good,
            &b"{\n  \"dividend\": 7,\n  \"divisor\" 2\n}"[..],
            "the request was rejected: the message can't be parsed as JSON (line 3, column 13): expected `:`",
        ),
        (
            &json,
            good,
            br#"{"dividend": 7}"#,
            "the request was rejected: the message is not the JSON that is expected here (line 1, column 15): \
             missing field `divisor`",
        ),
        (
            &json,
            good,
            b"\xff",
            "the request was rejected: the message can't be parsed as JSON (line 1, column 1)",
        ),
        (
            &postcard,
            &[12, 6],
            &[12],
            "the request was rejected: the message is not the postcard value that is expected here (byte 1 of 1): \
             Hit the end of buffer",
        ),
        (
            &postcard,
            &[12, 6],
            &[12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            "the request was rejected: the message is not the postcard value that is expected here (byte 6 of 7): \
             Found a varint",
        ),
    ] {
        let mut other = pipe.connect().await;
        let mut client = pipe.connect().await;
        let before = client.call(good.to_vec()).await.unwrap();
        let error = client.call(bad.to_vec()).await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
        let line = log.line_with(reason);
        assert!(line.starts_with("WARN"), "{line}");
        assert!(line.contains("rejected"), "{line}");
        assert_eq!(other.call(good.to_vec()).await.unwrap(), before);
    }
}

async fn a_handler_that_takes_the_result_answers_what_is_rejected(kind: Kind) {
    let pipe = start(
        kind,
        |request: Result<Json<Division>, JsonRejection>| async move {
            Json(match request {
                Ok(Json(division)) => divide(division),
                Err(rejection) => Err(Refusal {
                    code: 400,
                    message: rejection.to_string(),
                }),
            })
        },
    );
    let mut client = pipe.connect().await;
    let refusal = client.call_json::<Result<i32, Refusal>>("7 / 2").await;
    let expected = "the message is not the JSON that is expected here (line 1, column 7)";
    assert_eq!(refusal.unwrap().unwrap_err().message, expected);
    let refusal = client.call(r#"{"dividend":7 / 2}"#).await.unwrap();
    let Json(refusal) = Json::<Result<i32, Refusal>>::from_bytes(&refusal).unwrap();
    let expected = "the message can't be parsed as JSON (line 1, column 15)";
    assert_eq!(refusal.unwrap_err().message, expected);

    let pipe = start(
        kind,
        |request: Result<Postcard<Division>, PostcardRejection>| async move {
            Postcard(match request {
                Ok(Postcard(division)) => divide(division),
                Err(rejection) => Err(Refusal {
                    code: 400,
                    message: rejection.to_string(),
                }),
            })
        },
    );
    let mut client = pipe.connect().await;
    let refusal = client.call_postcard::<Result<i32, Refusal>>(&1_u8).await;
    let expected = "the message is not the postcard value that is expected here (byte 1 of 1)";
    assert_eq!(refusal.unwrap().unwrap_err().message, expected);
}

async fn a_message_that_nests_too_deeply_is_rejected(kind: Kind) {
    let longest = kind.longest().min(65_536);
    let pipe = start(
        kind,
        |request: Result<Json<serde_json::Value>, JsonRejection>| async move {
            request.map_or_else(|rejection| rejection.to_string(), |_| "a value".to_owned())
        },
    );
    let mut client = pipe.connect().await;
    let nested = |levels| [vec![b'['; levels], vec![b']'; levels]].concat();
    assert_eq!(client.call(nested(127)).await.unwrap(), "a value");
    for levels in [128, longest / 2] {
        let reply = client.call(nested(levels)).await.unwrap();
        assert_eq!(
            reply,
            "the message can't be parsed as JSON (line 1, column 128)"
        );
    }

    let pipe = start(
        kind,
        |request: Result<Postcard<Nested>, PostcardRejection>| async move {
            request.map_or_else(|rejection| rejection.to_string(), |_| "a value".to_owned())
        },
    );
    let mut client = pipe.connect().await;
    let nested = |levels| [vec![1; levels - 1], vec![0]].concat();
    assert_eq!(client.call(nested(128)).await.unwrap(), "a value");
    let reply = client.call(nested(longest)).await.unwrap();
    let reply = String::from_utf8_lossy(&reply);
    assert!(
        reply.starts_with("the message is nested too deeply"),
        "{reply}"
    );
    assert_eq!(client.call(nested(1)).await.unwrap(), "a value");
}

async fn bytes_after_a_value_are_rejected(kind: Kind) {
    let pipe = start(kind, |json: Result<Json<u8>, JsonRejection>| async move {
        json.map_or_else(|rejection| rejection.to_string(), |_| "a value".to_owned())
    });
    let mut client = pipe.connect().await;
    assert_eq!(client.call("\t1\r\n").await.unwrap(), "a value");
    let expected = "the message can't be parsed as JSON (line 1, column 3)";
    assert_eq!(client.call("1 2").await.unwrap(), expected);
    // As programs send that end a text with it.
    let expected = "the message can't be parsed as JSON (line 1, column 2)";
    assert_eq!(client.call("1\0").await.unwrap(), expected);

    let pipe = start(
        kind,
        |request: Result<Postcard<u8>, PostcardRejection>| async move {
            request.map_or_else(|rejection| rejection.to_string(), |_| "a value".to_owned())
        },
    );
    let mut client = pipe.connect().await;
    assert_eq!(client.call(vec![1]).await.unwrap(), "a value");
    let expected =
        "the message has 2 bytes, but the postcard value that is expected here ends at byte 1";
    assert_eq!(client.call(vec![1, 0]).await.unwrap(), expected);
}

async fn a_value_that_is_encoded_as_nothing_goes_round(kind: Kind) {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nothing;

    let pipe = start(
        kind,
        |_: Postcard<Nothing>| async move { Postcard(Nothing) },
    );
    let mut client = pipe.connect().await;
    client.call_postcard::<()>(&()).await.unwrap();
    let reply: (Nothing, [u8; 0]) = client.call_postcard(&Nothing).await.unwrap();
    assert_eq!(reply, (Nothing, []));
    assert_eq!(client.call(vec![0]).await.unwrap(), vec![0]);
    for other in [vec![1], vec![0, 0]] {
        let mut client = pipe.connect().await;
        let error = client.call(other).await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
    }

    let pipe = start(kind, |_: Json<()>| async move { Json(()) });
    let mut client = pipe.connect().await;
    client.call_json::<()>(&()).await.unwrap();
    assert_eq!(client.call("null").await.unwrap(), "null");
}

/// Keys that are not strings, which JSON does not have.
fn unencodable_as_json() -> HashMap<(u8, u8), u8> {
    HashMap::from([((1, 2), 3)])
}

/// A sequence of unknown length, which postcard does not have.
struct Unending;

impl Serialize for Unending {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq([1, 2].iter().filter(|&&number| number > 1))
    }
}

async fn a_reply_that_can_not_be_encoded_ends_its_conversation_and_is_logged(kind: Kind) {
    let log = Log::start();
    let json = start(kind, |_: Bytes| async { Json(unencodable_as_json()) });
    let postcard = start(kind, |_: Bytes| async { Postcard(Unending) });
    for (pipe, reason) in [
        (
            json,
            "the handler failed: the reply can't be encoded as JSON: key must be a string",
        ),
        (
            postcard,
            "the handler failed: the reply can't be encoded as postcard: The length of a sequence must be known",
        ),
    ] {
        let error = pipe.connect().await.call("x").await.unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
        let line = log.line_with(reason);
        assert!(line.starts_with("ERROR"), "{line}");
    }
}

async fn a_reply_over_the_limit_ends_its_conversation_and_is_logged(kind: Kind) {
    let log = Log::start();
    let options = ListenerOptions::new().max_message_size(10);
    let (listener, pipe) = kind.bind(options);
    let handler = |Json(length): Json<usize>| async move { Json("x".repeat(length)) };
    tokio::spawn(serve(listener, handler).into_future());
    let mut client = pipe.connect().await;
    // With its quotation marks, 8 letters are 10 bytes.
    assert_eq!(client.call_json::<String>(&8).await.unwrap(), "xxxxxxxx");
    let error = client.call_json::<String>(&9).await.unwrap_err();
    assert!(
        matches!(error, JsonCallError::Call(CallError::Closed)),
        "{error:?}"
    );
    let line = log.line_with("a message of 11 bytes is longer than the limit of 10");
    assert!(line.starts_with("ERROR"), "{line}");
}

async fn a_request_that_can_not_be_encoded_or_is_too_long_sends_nothing(kind: Kind) {
    let (requests, mut received) = mpsc::unbounded_channel();
    let pipe = start(kind, move |request: Bytes| {
        _ = requests.send(request.clone());
        async move { request }
    });
    let mut client = pipe.connect().await;
    let too_long = "x".repeat(100_000);

    let error = client
        .call_json::<()>(&unencodable_as_json())
        .await
        .unwrap_err();
    let expected = "the request can't be encoded as JSON; nothing was sent: key must be a string";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    let error = client.call_json::<()>(&too_long).await.unwrap_err();
    let as_it_should = matches!(
        error,
        JsonCallError::Call(CallError::Send(SendError::TooLong {
            length: 100_002,
            ..
        }))
    );
    assert!(as_it_should, "{error:?}");

    let error = client.call_postcard::<()>(&Unending).await.unwrap_err();
    let expected = "the request can't be encoded as postcard; nothing was sent: The length";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    let error = client.call_postcard::<()>(&too_long).await.unwrap_err();
    let as_it_should = matches!(
        error,
        PostcardCallError::Call(CallError::Send(SendError::TooLong {
            length: 100_003,
            ..
        }))
    );
    assert!(as_it_should, "{error:?}");

    assert_eq!(client.call_json::<u8>(&1).await.unwrap(), 1);
    assert_eq!(received.recv().await.unwrap(), "1");
    assert!(received.try_recv().is_err());
}

async fn a_client_that_can_not_decode_a_reply_can_call_again(kind: Kind) {
    let pipe = start(kind, |request: Bytes| async move { request });
    let mut client = pipe.connect().await;

    let error = client.call_json::<u8>("text").await.unwrap_err();
    let expected = "the reply can't be decoded: \
                    the message is not the JSON that is expected here (line 1, column 6): invalid type";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    assert_eq!(client.call_json::<u8>(&1).await.unwrap(), 1);

    let error = client
        .call_postcard::<(u8, bool)>(&(1, 2))
        .await
        .unwrap_err();
    let expected = "the reply can't be decoded: \
                    the message is not the postcard value that is expected here (byte 2 of 2): Found a bool";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    assert_eq!(client.call_postcard::<u8>(&1_u8).await.unwrap(), 1);
}

async fn the_reply_to_a_dropped_call_is_not_taken_for_another(kind: Kind) {
    let pipe = start(kind, |request: Bytes| async move { request });
    let mut client = pipe.connect().await;
    for polls in 0..4 {
        {
            let mut call = pin!(client.call_json::<String>("dropped"));
            for _ in 0..polls {
                if poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await {
                    break;
                }
                yield_now().await;
            }
        }
        assert_eq!(client.call_json::<u8>(&1).await.unwrap(), 1);
        assert!(client.call_postcard::<bool>(&true).await.unwrap());
    }
}

async fn a_shared_client_calls_with_values(kind: Kind) {
    let pipe = start(kind, |request: Bytes| async move { request });
    let client = pipe.shared(&ClientOptions::new().shared());
    assert_eq!(client.call_json::<u8>(&1).await.unwrap(), 1);
    assert!(client.call_postcard::<bool>(&true).await.unwrap());

    let error = client.call_json::<u8>("text").await.unwrap_err();
    assert!(matches!(error, JsonCallError::Decode(_)), "{error:?}");
    let error = client.call_postcard::<bool>(&2_u8).await.unwrap_err();
    assert!(matches!(error, PostcardCallError::Decode(_)), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);

    client.shutdown().await;
    // Encoded first.
    let error = client.call_json::<()>(&unencodable_as_json()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, JsonCallError::Encode(_)), "{error:?}");
    let error = client.call_postcard::<()>(&Unending).await.unwrap_err();
    assert!(matches!(error, PostcardCallError::Encode(_)), "{error:?}");
    let error = client.call_json::<u8>(&1).await.unwrap_err();
    let JsonCallError::Call(not_executed) = &error else {
        panic!("{error:?}")
    };
    assert!(!not_executed.may_be_executed());
    let text = "the request was not executed: the client has been shut down";
    assert_eq!(chain(&error), text);
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
}

/// Answers each message with its successor, in the same format.
async fn count(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
    let number: u8 = connection.recv_json().await?.unwrap();
    connection.send_json(&(number + 1)).await?;
    let number: u8 = connection.recv_postcard().await?.unwrap();
    connection.send_postcard(&(number + 1)).await?;
    let (mut receiver, mut sender) = connection.into_split();
    let number: u8 = receiver.recv_json().await?.unwrap();
    sender.send_json(&(number + 1)).await?;
    let number: u8 = receiver.recv_postcard().await?.unwrap();
    sender.send_postcard(&(number + 1)).await?;
    assert!(receiver.recv_json::<u8>().await?.is_none());
    assert!(receiver.recv_postcard::<u8>().await?.is_none());
    Ok(())
}

async fn connections_halves_and_clients_exchange_values(kind: Kind) {
    let (server, pipe) = start_connections(kind, count);
    let mut client = pipe.connect().await;
    for number in [10, 20] {
        client.send_json(&number).await.unwrap();
        let next: Option<u8> = client.recv_json().await.unwrap();
        assert_eq!(next, Some(number + 1));
        client.send_postcard(&number).await.unwrap();
        let next: Option<u8> = client.recv_postcard().await.unwrap();
        assert_eq!(next, Some(number + 1));
    }
    client.finish().await.unwrap();
    assert!(client.recv_json::<u8>().await.unwrap().is_none());
    assert!(client.recv_postcard::<u8>().await.unwrap().is_none());
    assert_eq!(errors(&server.stop().await), []);
}

async fn a_message_that_can_not_be_encoded_sends_nothing(kind: Kind) {
    let pipe = start(kind, |request: Bytes| async move { request });
    let mut client = pipe.connect().await;
    let error = client.send_json(&unencodable_as_json()).await.unwrap_err();
    let expected = "the message can't be encoded as JSON; nothing was sent: key must be a string";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    let error = client.send_postcard(&Unending).await.unwrap_err();
    let expected = "the message can't be encoded as postcard; nothing was sent: The length";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    client.send_json(&1).await.unwrap();
    assert_eq!(client.recv_json::<u8>().await.unwrap(), Some(1));

    let error = client.send_json(&"x".repeat(100_000)).await.unwrap_err();
    let expected = "the message can't be sent: a message of 100002 bytes is longer than the limit";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    client.finish().await.unwrap();
    let error = client.send_json(&1).await.unwrap_err();
    assert!(
        matches!(error, JsonSendError::Send(SendError::Finished)),
        "{error:?}"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
}

async fn a_message_that_can_not_be_decoded_is_followed_by_the_next(kind: Kind) {
    let pipe = start(kind, |request: Bytes| async move { request });
    let mut client = pipe.connect().await;
    for message in ["text", "1"] {
        client.send(message).await.unwrap();
    }
    let error = client.recv_json::<u8>().await.unwrap_err();
    let expected = "the message can't be decoded: the message can't be parsed as JSON (line 1";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    assert_eq!(client.recv_json::<u8>().await.unwrap(), Some(1));

    for message in [&[2], &[1]] {
        client.send(&message[..]).await.unwrap();
    }
    let error = client.recv_postcard::<bool>().await.unwrap_err();
    let expected = "the message can't be decoded: the message is not the postcard value";
    assert!(chain(&error).starts_with(expected), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    assert_eq!(client.recv_postcard::<bool>().await.unwrap(), Some(true));
}

async fn a_task_that_can_not_decode_a_message_blames_its_client(kind: Kind) {
    let log = Log::start();
    let task = |mut connection: Connection, _: Shutdown| async move {
        match connection.id() {
            1 => _ = connection.recv_json::<Division>().await?,
            2 => _ = connection.recv_postcard::<bool>().await?,
            3 => _ = connection.into_split().0.recv_json::<Division>().await?,
            // As an `io::Error`, too.
            _ => _ = io_error(connection.recv_json::<Division>().await)?,
        }
        Ok::<_, BoxError>(())
    };
    let (server, pipe) = start_connections(kind, task);
    for _ in 0..4 {
        pipe.connect().await.call(vec![2]).await.unwrap_err();
    }
    assert_eq!(errors(&server.stop().await), [(Reason::Rejected, 4)]);
    let lines = log.lines_with(r#"reason="rejected""#);
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert!(line.starts_with("WARN"), "{line}");
        assert!(
            line.contains(
                "the connection's task failed: the message can't be decoded: the message"
            ),
            "{line}"
        );
    }
}

fn io_error<T>(result: Result<T, JsonRecvError>) -> io::Result<T> {
    result.map_err(io::Error::from)
}

async fn a_task_that_can_not_decode_what_another_sent_blames_itself(kind: Kind) {
    let log = Log::start();
    let other = start(kind, |request: Bytes| async move { request });
    let back = Arc::new(Mutex::new(other.connect().await));
    let task = move |mut connection: Connection, _: Shutdown| {
        let back = Arc::clone(&back);
        async move {
            connection.recv().await?;
            let mut back = back.lock().await;
            back.send("not a number").await?;
            back.recv_json::<u8>().await?;
            Ok::<_, BoxError>(())
        }
    };
    let (server, pipe) = start_connections(kind, task);
    pipe.connect().await.call("x").await.unwrap_err();
    assert_eq!(errors(&server.stop().await), [(Reason::ConnectionTask, 1)]);
    let line = log.line_with("the message can't be decoded");
    assert!(line.starts_with("ERROR"), "{line}");
}

fn start_connections<F, Running>(kind: Kind, task: F) -> (Server, Pipe)
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let serving = serve_connections(listener, task);
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    (server, pipe)
}

/// The errors that a server has counted.
fn errors(summary: &Summary) -> Vec<(Reason, u64)> {
    let errors = summary.stats.errors.iter();
    errors.filter(|&(_, count)| count > 0).collect()
}

async fn the_documented_messages_are_those_on_the_pipe(kind: Kind) {
    let json = start(kind, |Json(division): Json<Division>| async move {
        Json(divide(division))
    });
    let postcard = start(kind, |Postcard(division): Postcard<Division>| async move {
        Postcard(divide(division))
    });
    let mut messages = Vec::new();
    for divisor in [2, 0] {
        let division = Division {
            dividend: 7,
            divisor,
        };
        let request = Json(&division).to_bytes().unwrap();
        messages.push(request.clone());
        messages.push(json.connect().await.call(request).await.unwrap());
        let request = Postcard(&division).to_bytes().unwrap();
        messages.push(request.clone());
        messages.push(postcard.connect().await.call(request).await.unwrap());
    }

    let page = include_str!("../../docs/typed-messages.md");
    let blocks = page.split("```text\n").skip(1);
    let dumps: Vec<_> = blocks
        .filter_map(|block| block.split("```").next())
        .collect();
    for message in &messages {
        let dump = dump(message);
        assert!(dumps.contains(&&*dump), "the page lacks\n{dump}");
    }
    assert_eq!(dumps.len(), messages.len());
}

/// As `xxd -g 1` prints it.
fn dump(message: &[u8]) -> String {
    let line = |(number, bytes): (usize, &[u8])| {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = bytes
            .iter()
            .map(|&byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            })
            .collect();
        let line = format!("{:08x}: {:<47}  {text}", number * 16, hex.join(" "));
        line.trim_end().to_owned() + "\n"
    };
    message.chunks(16).enumerate().map(line).collect()
}

/// Something of everything that both formats have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    numbers: (u64, i64, u128, u8),
    float: f64,
    text: String,
    character: char,
    unit: (),
    list: Vec<Choice>,
    map: HashMap<String, Option<bool>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Unit,
    Newtype(i16),
    Tuple(String, f32),
    Struct { bytes: Vec<u8>, nested: Vec<Self> },
}

fn choice() -> impl Strategy<Value = Choice> {
    let leaf = prop_oneof![
        Just(Choice::Unit),
        any::<i16>().prop_map(Choice::Newtype),
        (any::<String>(), -1e9..1e9_f32).prop_map(|(text, float)| Choice::Tuple(text, float)),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        (any::<Vec<u8>>(), vec(inner, 0..4))
            .prop_map(|(bytes, nested)| Choice::Struct { bytes, nested })
    })
}

fn everything() -> impl Strategy<Value = Everything> {
    (
        (any::<u64>(), any::<i64>(), any::<u128>(), any::<u8>()),
        -1e300..1e300_f64,
        any::<String>(),
        any::<char>(),
        vec(choice(), 0..4),
        any::<HashMap<String, Option<bool>>>(),
    )
        .prop_map(|(numbers, float, text, character, list, map)| Everything {
            numbers,
            float,
            text,
            character,
            unit: (),
            list,
            map,
        })
}

/// What the handler of one side makes of the reply of another's.
fn round_trip<M: FromRequest + IntoReply>(message: M) -> M {
    let reply = message.into_reply().unwrap().into_message().unwrap();
    let request = Request::new(reply, Peer::current().unwrap());
    match M::from_request(&request) {
        Ok(message) => message,
        Err(rejection) => panic!("{}", rejection.into()),
    }
}

/// Whatever is taken for a message means the same when it is encoded again.
fn rejects_or_means<T>(message: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Ok(message) = Json::<T>::from_bytes(message) {
        let again = Json::from_bytes(&message.to_bytes().unwrap()).unwrap();
        assert_eq!(message, again);
    }
    if let Ok(message) = Postcard::<T>::from_bytes(message) {
        // Not the same bytes: a varint may have been longer than needed.
        let again = Postcard::from_bytes(&message.to_bytes().unwrap()).unwrap();
        assert_eq!(message, again);
    }
}

/// Strings that look like JSON more often than random bytes do.
fn almost_json() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\""),
        Just(":"),
        Just(","),
        Just(" "),
        Just("null"),
        Just("true"),
        Just("-1"),
        Just("1e999"),
        Just("0.5"),
        Just("\\u0000"),
        Just("\\ud800"),
        Just("\"Ok\":"),
        Just("\"Err\":"),
        Just("text"),
        Just("\u{feff}"),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_value_goes_round(value in everything()) {
        prop_assert_eq!(round_trip(Json(value.clone())), Json(value.clone()));
        prop_assert_eq!(round_trip(Postcard(value.clone())), Postcard(value.clone()));
        let (answer, refusal) = (Ok(value.clone()), Err(value));
        for result in [answer, refusal] {
            prop_assert_eq!(round_trip(Json(result.clone())), Json(result.clone()));
            prop_assert_eq!(round_trip(Postcard(result.clone())), Postcard(result));
        }
    }

    #[test]
    fn no_message_panics(message in prop_oneof![vec(any::<u8>(), 0..64), almost_json()]) {
        rejects_or_means::<Division>(&message);
        rejects_or_means::<Vec<u16>>(&message);
        rejects_or_means::<Vec<Choice>>(&message);
        rejects_or_means::<Result<Option<u8>, String>>(&message);
        rejects_or_means::<HashMap<String, Nested>>(&message);
        rejects_or_means::<()>(&message);
        _ = Json::<serde_json::Value>::from_bytes(&message);
    }
}

#[test]
fn floats_that_json_does_not_have_are_null_there() {
    for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(Json(float).to_bytes().unwrap(), "null");
        let Postcard(same) = round_trip(Postcard(float));
        assert_eq!(same.to_bits(), float.to_bits());
    }
}

#[test]
fn a_format_derefs_to_its_value() {
    let mut json = Json(vec![1]);
    json.push(2);
    assert_eq!((json.len(), json.0), (2, vec![1, 2]));
    let mut postcard = Postcard(String::from("a"));
    postcard.push('b');
    assert_eq!(*postcard, "ab");
}

/// A handler with `Json` is called without a server like any other one.
#[test]
fn a_handler_is_tested_without_a_server() {
    let handler = |Json(division): Json<Division>| async move { Json(divide(division)) };
    let peer = Peer::current().unwrap();
    let request = Request::new(r#"{"dividend":7,"divisor":2}"#, peer);
    let reply = Handler::call(&handler, request).now_or_never().unwrap();
    assert_eq!(reply.unwrap().into_message().unwrap(), r#"{"Ok":3}"#);
}
