//! Tower services as a handler: each request has one second, and a failed request is answered with
//! its error.
//!
//! Run `cargo run --example tower --features tower`, and in another terminal
//! `cargo run --bin pipe-client -- --pipe-name tower 17 seventeen`.

use std::{future::Future, time::Duration};

use pipe_server::{BoxError, Handler, PipeListener, Request, TowerHandler, serve};
use tower::{ServiceBuilder, ServiceExt, service_fn};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = PipeListener::bind("tower")?;
    println!("listening on {}", listener.path().display());
    serve(listener, handler(square)).await;
    Ok(())
}

async fn square(request: Request) -> Result<String, BoxError> {
    let number: i64 = std::str::from_utf8(request.bytes())?.parse()?;
    let square = number
        .checked_mul(number)
        .ok_or("the number is too large")?;
    Ok(square.to_string())
}

/// Wraps a function in the layers.
fn handler<F, Answer>(function: F) -> impl Handler
where
    F: Fn(Request) -> Answer + Clone + Send + 'static,
    Answer: Future<Output = Result<String, BoxError>> + Send + 'static,
{
    let service = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .service(service_fn(function));
    let service = service.then(|answered: Result<String, BoxError>| async {
        Ok::<_, BoxError>(answered.unwrap_or_else(|error| format!("error: {error}")))
    });
    TowerHandler::new(service)
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use std::future::pending;

    use pipe_server::Peer;

    use super::*;

    async fn call(handler: &impl Handler, request: String) -> String {
        let request = Request::new(request, Peer::current().unwrap());
        let reply = handler.call(request).await.unwrap();
        String::from_utf8_lossy(reply.message().unwrap()).into_owned()
    }

    #[tokio::test]
    async fn numbers_are_squared_and_anything_else_is_an_error() {
        let handler = handler(square);
        assert_eq!(call(&handler, "17".into()).await, "289");
        let reply = call(&handler, "seventeen".into()).await;
        assert!(reply.starts_with("error: invalid digit"), "{reply}");
        let reply = call(&handler, i64::MAX.to_string()).await;
        assert_eq!(reply, "error: the number is too large");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_an_error() {
        let handler = handler(|_| pending());
        let reply = call(&handler, "forever".into()).await;
        assert_eq!(reply, "error: request timed out");
    }
}
