//! Requests and replies in JSON.

use std::{
    error::Error,
    io,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;
use serde_core::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;

use crate::{
    client::{Client, SharedClient},
    connection::{Connection, RecvHalf, SendHalf},
    error::{BoxError, CallError, RecvError, SendError, SharedCallError},
    handler::{
        FromRequest, IntoReply, Reply, Request,
        typed::{typed_call, typed_errors, typed_format, typed_recv, typed_send},
    },
};

/// A message in JSON: an argument of a handler, and a reply.
///
/// As an argument it is rejected with [`JsonRejection`] if the message is not JSON, or not a `T`. A
/// reply that can't be encoded, such as a map with keys that are not strings, is an error of the
/// handler. JSON has no infinity and no NaN: they are sent as `null`.
///
/// To tell the client that a request has failed, reply with a `Result`: `Json(Ok(value))` is sent
/// as `{"Ok": value}` and `Json(Err(error))` as `{"Err": error}`, and
/// [`call_json::<Result<T, E>>`](Client::call_json) returns it. A handler that returns `Err(error)`
/// *outside* `Json` ends the conversation, and the client does not learn why.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::{Client, Json, PipeListener, serve};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Square {
///     side: u32,
/// }
///
/// let name = format!("json-doc-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let serving = serve(listener, |Json(square): Json<Square>| async move {
///     Json(square.side.checked_mul(square.side).ok_or("the square is too large"))
/// });
/// tokio::spawn(serving.into_future());
///
/// let mut client = Client::connect(&name).await?;
/// let area: Result<u32, String> = client.call_json(&Square { side: 3 }).await?;
/// assert_eq!(area, Ok(9));
/// let area: Result<u32, String> = client.call_json(&Square { side: 100_000 }).await?;
/// assert_eq!(area, Err("the square is too large".to_owned()));
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
///
/// A server that sends more than replies, and a client that many tasks use:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::{BoxError, Client, Connection, PipeListener, SharedClient, Shutdown, serve_connections};
///
/// async fn count_down(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
///     while let Some(from) = connection.recv_json::<u32>().await? {
///         for number in (0..=from).rev() {
///             connection.send_json(&number).await?;
///         }
///     }
///     Ok(())
/// }
///
/// let name = format!("json-push-doc-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// tokio::spawn(serve_connections(listener, count_down).into_future());
///
/// let mut client = Client::connect(&name).await?;
/// client.send_json(&1).await?;
/// assert_eq!(client.recv_json().await?, Some(1));
/// assert_eq!(client.recv_json().await?, Some(0));
///
/// let client = SharedClient::connect(&name).await?;
/// let reply: u32 = client.call_json(&0).await?;
/// assert_eq!(reply, 0);
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> Json<T> {
    /// Decodes a message. Handlers and clients do this; it is for code that has a
    /// [`Connection`].
    ///
    /// # Errors
    ///
    /// Returns the rejection if the message is not JSON, or not a `T`. Arrays and objects may be
    /// nested 127 levels deep.
    pub fn from_bytes(message: &[u8]) -> Result<Self, JsonRejection> {
        serde_json::from_slice(message)
            .map(Self)
            .map_err(|error| match error.classify() {
                Category::Data => JsonRejection::Data(error),
                Category::Syntax | Category::Eof | Category::Io => JsonRejection::Syntax(error),
            })
    }
}

impl<T: Serialize> Json<T> {
    /// Encodes a message, without insignificant whitespace.
    ///
    /// # Errors
    ///
    /// Returns the error of `T`'s `Serialize`, or an error if `T` has a map with keys that are not
    /// strings.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(&self.0).map(Bytes::from)
    }
}

typed_format! { Json, "JSON", serde_json::Error, JsonRejection }

typed_errors! {
    "JSON", serde_json::Error, JsonRejection,
    "call_json" JsonCallError, "send_json" JsonSendError, "recv_json" JsonRecvError
}

typed_call! { Json, "JSON", call_json(&mut) of Client, JsonCallError, CallError }
typed_call! { Json, "JSON", call_json(&) of SharedClient, JsonCallError, SharedCallError }
typed_send! { Json, "JSON", send_json of Connection SendHalf Client, JsonSendError }
typed_recv! { Json, "JSON", recv_json of Connection RecvHalf Client, JsonRecvError }

/// A message is not the [`Json<T>`](Json) that was expected.
///
/// The text says where, and can be shown to a client. The source says more, and may name fields of
/// your types.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonRejection {
    /// The message is not JSON, or nested too deeply.
    #[error("the message can't be parsed as JSON (line {}, column {})", .0.line(), .0.column())]
    Syntax(#[source] serde_json::Error),
    /// The message is JSON up to this place, but not a `T`.
    #[error("the message is not the JSON that is expected here (line {}, column {})", .0.line(), .0.column())]
    Data(#[source] serde_json::Error),
}
