//! Requests and replies in postcard, a binary format.

use std::{
    error::Error,
    io,
    ops::{Deref, DerefMut},
    ptr,
};

use bytes::Bytes;
use postcard::{Deserializer, de_flavors::Flavor};
use serde_core::{Serialize, de::DeserializeOwned};

use crate::{
    client::{Client, SharedClient},
    connection::{Connection, RecvHalf, SendHalf},
    error::{BoxError, CallError, RecvError, SendError, SharedCallError},
    handler::{
        FromRequest, IntoReply, Reply, Request,
        typed::{typed_call, typed_errors, typed_format, typed_recv, typed_send},
    },
};

/// The maximum size of the stack while decoding, in bytes. Postcard has no limit of its own:
/// without this, a few thousand bytes nested in a recursive type would overflow the stack, which
/// aborts the process. It is a quarter of the smallest stack that Tokio runs on by default, that of
/// the main thread on Windows.
const STACK: usize = 256 * 1024;

/// The message of a value that postcard encodes as nothing, such as `()`: an empty one can't be
/// sent.
const NOTHING: &[u8] = &[0];

/// A message in [postcard](https://postcard.jamesmunns.com), a compact binary format: an argument of a handler,
/// and a reply.
///
/// As an argument it is rejected with [`PostcardRejection`] if the message is not exactly one `T`.
/// A reply that can't be encoded, such as an iterator of unknown length, is an error of the
/// handler. A value that postcard encodes as nothing, such as `()`, is sent as one zero byte, since
/// an empty message ends the conversation.
///
/// To tell the client that a request has failed, reply with a `Result`: `Postcard(Ok(value))` is a
/// zero byte and the value, `Postcard(Err(error))` a byte of one and the error, and
/// [`call_postcard::<Result<T, E>>`](Client::call_postcard) returns it. A handler that returns
/// `Err(error)` *outside* `Postcard` ends the conversation, and the client does not learn why.
///
/// Do not take sequences of values that are encoded as nothing, such as `Vec<()>`: a client can
/// claim any length for them, and decoding takes as long.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::{Client, PipeListener, Postcard, serve};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Square {
///     side: u32,
/// }
///
/// let name = format!("postcard-doc-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let serving = serve(listener, |Postcard(square): Postcard<Square>| async move {
///     Postcard(square.side.checked_mul(square.side).ok_or("the square is too large"))
/// });
/// tokio::spawn(serving.into_future());
///
/// let mut client = Client::connect(&name).await?;
/// let area: Result<u32, String> = client.call_postcard(&Square { side: 3 }).await?;
/// assert_eq!(area, Ok(9));
/// let area: Result<u32, String> = client.call_postcard(&Square { side: 100_000 }).await?;
/// assert_eq!(area, Err("the square is too large".to_owned()));
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
///
/// Other messages than requests and replies:
///
/// ```no_run
/// use pipe_server::{BoxError, Connection, Shutdown};
///
/// async fn count_down(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
///     while let Some(from) = connection.recv_postcard::<u32>().await? {
///         for number in (0..=from).rev() {
///             connection.send_postcard(&number).await?;
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Postcard<T>(pub T);

impl<T: DeserializeOwned> Postcard<T> {
    /// Decodes a message. Handlers and clients do this; it is for code that has a
    /// [`Connection`].
    ///
    /// # Errors
    ///
    /// Returns the rejection if the message is not exactly one `T`, or if decoding it would use
    /// more than 256 KiB of the stack, as a deeply nested value of a recursive type does.
    pub fn from_bytes(message: &[u8]) -> Result<Self, PostcardRejection> {
        let mut deserializer = Deserializer::from_flavor(Unread {
            bytes: message,
            stack: end_of_stack(),
            too_deep: false,
        });
        let decoded = T::deserialize(&mut deserializer);
        let unread = deserializer.finalize().expect("Unread's never fails");
        let length = message.len();
        let at = length - unread.bytes.len();
        match decoded {
            _ if unread.too_deep => Err(PostcardRejection::TooDeep { at }),
            Err(source) => Err(PostcardRejection::Data { at, length, source }),
            Ok(value) if at == length || (at == 0 && message == NOTHING) => Ok(Self(value)),
            Ok(_) => Err(PostcardRejection::TrailingBytes { at, length }),
        }
    }
}

impl<T: Serialize> Postcard<T> {
    /// Encodes a message.
    ///
    /// # Errors
    ///
    /// Returns the error of `T`'s `Serialize`, or an error if `T` has a sequence of unknown length.
    pub fn to_bytes(&self) -> Result<Bytes, postcard::Error> {
        let message = postcard::to_stdvec(&self.0)?;
        if message.is_empty() {
            return Ok(Bytes::from_static(NOTHING));
        }
        Ok(Bytes::from(message))
    }
}

typed_format! { Postcard, "postcard", postcard::Error, PostcardRejection }

typed_errors! {
    "postcard", postcard::Error, PostcardRejection,
    "call_postcard" PostcardCallError, "send_postcard" PostcardSendError, "recv_postcard" PostcardRecvError
}

typed_call! { Postcard, "postcard", call_postcard(&mut) of Client, PostcardCallError, CallError }
typed_call! { Postcard, "postcard", call_postcard(&) of SharedClient, PostcardCallError, SharedCallError }
typed_send! { Postcard, "postcard", send_postcard of Connection SendHalf Client, PostcardSendError }
typed_recv! { Postcard, "postcard", recv_postcard of Connection RecvHalf Client, PostcardRecvError }

/// A message is not the [`Postcard<T>`](Postcard) that was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostcardRejection {
    /// The message is not a `T`.
    #[error("the message is not the postcard value that is expected here (byte {at} of {length})")]
    #[non_exhaustive]
    Data {
        /// The number of bytes that were read.
        at: usize,
        /// The message's length, in bytes.
        length: usize,
        /// The error of postcard.
        source: postcard::Error,
    },
    /// The message is a `T`, and more follows.
    #[error(
        "the message has {length} bytes, but the postcard value that is expected here ends at byte {at}"
    )]
    #[non_exhaustive]
    TrailingBytes {
        /// The number of bytes that were read.
        at: usize,
        /// The message's length, in bytes.
        length: usize,
    },
    /// The message is nested too deeply.
    #[error(
        "the message is nested too deeply (byte {at}): decoding it would use more than {STACK} bytes of the stack"
    )]
    #[non_exhaustive]
    TooDeep {
        /// The number of bytes that were read.
        at: usize,
    },
}

/// The part of a message that is left to decode.
struct Unread<'a> {
    bytes: &'a [u8],
    /// The end of the stack when decoding began.
    stack: usize,
    too_deep: bool,
}

impl<'a> Flavor<'a> for Unread<'a> {
    type Remainder = Self;
    type Source = &'a [u8];

    /// Each level of a recursive type reads a byte with this: a tag or a length. So the stack is
    /// checked here.
    // Levels can't be counted in a flavor, and a deserializer around postcard's would be many times
    // this code.
    fn pop(&mut self) -> Result<u8, postcard::Error> {
        if self.stack.abs_diff(end_of_stack()) > STACK {
            self.too_deep = true;
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        self.try_take_n(1).map(|bytes| bytes[0])
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.bytes.len())
    }

    fn try_take_n(&mut self, length: usize) -> Result<&'a [u8], postcard::Error> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn finalize(self) -> Result<Self, postcard::Error> {
        Ok(self)
    }
}

/// The address of a variable in the current stack frame.
#[inline(always)]
fn end_of_stack() -> usize {
    let here = 0_u8;
    ptr::from_ref(&here).addr()
}
