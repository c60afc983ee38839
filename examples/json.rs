//! A calculator in JSON: a request is a division, and a reply its quotient or why there is none.
//!
//! Run `cargo run --example json --features json`, and in another terminal
//! `cargo run --bin pipe-client -- --pipe-name calculator '{"dividend": 7, "divisor": 2}'
//! '{"dividend": 7}'`.

use pipe_server::{BoxError, Json, JsonRejection, PipeListener, serve};
use serde::{Deserialize, Serialize};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("calculator")?;
    println!("listening on {}", listener.path().display());
    serve(listener, handle).await;
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Division {
    dividend: i64,
    divisor: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Quotient {
    quotient: i64,
    remainder: i64,
}

/// What a client is told: a code for programs, and a message for people.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Refusal {
    code: Code,
    message: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Code {
    BadRequest,
    OutOfRange,
}

/// Replies with the `Result`: `{"Ok": …}` or `{"Err": …}`.
async fn handle(request: Result<Json<Division>, JsonRejection>) -> Json<Result<Quotient, Refusal>> {
    Json(answer(request))
}

fn answer(request: Result<Json<Division>, JsonRejection>) -> Result<Quotient, Refusal> {
    let Json(Division { dividend, divisor }) = request?;
    let quotient = dividend.checked_div(divisor);
    let remainder = dividend.checked_rem(divisor);
    let (Some(quotient), Some(remainder)) = (quotient, remainder) else {
        return Err(Refusal {
            code: Code::OutOfRange,
            message: format!("{dividend} can't be divided by {divisor}"),
        });
    };
    Ok(Quotient {
        quotient,
        remainder,
    })
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self {
            code: Code::BadRequest,
            message: rejection.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use pipe_server::Client;

    use super::*;

    #[tokio::test]
    async fn a_client_can_tell_an_answer_from_a_refusal() {
        let name = format!("json-example-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        tokio::spawn(serve(listener, handle).into_future());
        let mut client = Client::connect(&name).await.unwrap();

        let mut divide = async |dividend, divisor| -> Result<Quotient, Refusal> {
            let division = Division { dividend, divisor };
            client.call_json(&division).await.unwrap()
        };
        let expected = Quotient {
            quotient: 3,
            remainder: 1,
        };
        assert_eq!(divide(7, 2).await, Ok(expected));
        assert_eq!(divide(7, 0).await.unwrap_err().code, Code::OutOfRange);
        let refusal = divide(i64::MIN, -1).await.unwrap_err();
        assert_eq!(refusal.code, Code::OutOfRange);
    }

    #[tokio::test]
    async fn a_request_that_is_not_a_division_is_refused_as_well() {
        let name = format!("json-example-bad-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        tokio::spawn(serve(listener, handle).into_future());
        let mut client = Client::connect(&name).await.unwrap();

        let reply = client.call(r#"{"dividend": 7}"#).await.unwrap();
        let expected = r#"{"Err":{"code":"bad_request","message":"the message is not the JSON that is expected here (line 1, column 15)"}}"#;
        assert_eq!(reply, expected);
        let reply = client.call("7 / 2").await.unwrap();
        assert!(reply.starts_with(br#"{"Err":{"code":"bad_request""#));
    }
}
