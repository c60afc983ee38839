//! The code that all formats of typed messages share.

/// Makes a format's `from_bytes` and `to_bytes` work as an argument of a handler and as a reply,
/// and derefs to the value.
macro_rules! typed_format {
    ($Format:ident, $name:literal, $EncodeError:ty, $Rejection:ident) => {
        impl<S, T: DeserializeOwned> FromRequest<S> for $Format<T> {
            type Rejection = $Rejection;

            fn from_request(request: &Request<S>) -> Result<Self, $Rejection> {
                Self::from_bytes(request.bytes())
            }
        }

        impl<T: Serialize> IntoReply for $Format<T> {
            fn into_reply(self) -> Result<Reply, BoxError> {
                let message = self.to_bytes().map_err(EncodeReplyError)?;
                Ok(Reply::new(message))
            }
        }

        impl<T> Deref for $Format<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }

        impl<T> DerefMut for $Format<T> {
            fn deref_mut(&mut self) -> &mut T {
                &mut self.0
            }
        }

        /// A handler's reply can't be encoded.
        #[derive(Debug, thiserror::Error)]
        #[error("the reply can't be encoded as {}", $name)]
        struct EncodeReplyError(#[source] $EncodeError);
    };
}

/// Makes the errors of typed messages.
macro_rules! typed_errors {
    (
        $name:literal, $EncodeError:ty, $Rejection:ident,
        $call:literal $CallError:ident, $send:literal $SendError:ident, $recv:literal $RecvError:ident
    ) => {
        #[doc = concat!("An error returned when [`Client::", $call, "`] fails or, with `E` =")]
        #[doc = concat!("[`SharedCallError`](crate::SharedCallError), when [`SharedClient::", $call, "`] does.")]
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $CallError<E = CallError> {
            /// The request can't be encoded. Nothing was sent.
            #[error("the request can't be encoded as {}; nothing was sent", $name)]
            Encode(#[source] $EncodeError),
            /// There is no reply.
            #[error(transparent)]
            Call(#[from] E),
            /// The reply can't be decoded. The client remains usable.
            #[error("the reply can't be decoded")]
            Decode(#[source] $Rejection),
        }

        impl<E> From<$CallError<E>> for io::Error
        where
            E: Error + Into<Self> + Send + Sync + 'static,
        {
            fn from(error: $CallError<E>) -> Self {
                match error {
                    $CallError::Encode(_) => Self::new(io::ErrorKind::InvalidInput, error),
                    $CallError::Call(error) => error.into(),
                    $CallError::Decode(_) => Self::new(io::ErrorKind::InvalidData, error),
                }
            }
        }

        #[doc = concat!("An error returned when [`Connection::", $send, "`] fails.")]
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $SendError {
            /// The message can't be encoded. Nothing was sent.
            #[error("the message can't be encoded as {}; nothing was sent", $name)]
            Encode(#[source] $EncodeError),
            /// The message could not be sent.
            #[error("the message can't be sent")]
            Send(#[from] SendError),
        }

        impl From<$SendError> for io::Error {
            fn from(error: $SendError) -> Self {
                match error {
                    $SendError::Encode(_) => Self::new(io::ErrorKind::InvalidInput, error),
                    $SendError::Send(error) => error.into(),
                }
            }
        }

        #[doc = concat!("An error returned when [`Connection::", $recv, "`] fails.")]
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $RecvError {
            /// The message could not be received.
            #[error("the message can't be received")]
            Recv(#[from] RecvError),
            /// The message can't be decoded. The next one can be received.
            #[error("the message can't be decoded")]
            Decode(#[source] $Rejection),
        }

        impl From<$RecvError> for io::Error {
            fn from(error: $RecvError) -> Self {
                match error {
                    $RecvError::Recv(error) => error.into(),
                    $RecvError::Decode(_) => Self::new(io::ErrorKind::InvalidData, error),
                }
            }
        }
    };
}

/// Makes a method that calls a server.
macro_rules! typed_call {
    ($Format:ident, $name:literal, $call:ident(& $($mutable:ident)?) of $Type:ident, $CallError:ident, $Error:ident) => {
        impl $Type {
            #[doc = concat!("Sends a request in ", $name, " and receives its reply in ", $name, ".")]
            /// See [`call`](Self::call).
            ///
            #[doc = concat!("Call it for a `Result` if the server replies with one: see [`", stringify!($Format), "`].")]
            ///
            /// # Errors
            ///
            #[doc = concat!("[`", stringify!($CallError), "`] says what failed. If the reply can't be decoded, the")]
            /// client remains usable.
            ///
            /// # Cancel safety
            ///
            /// As [`call`](Self::call).
            pub async fn $call<R: DeserializeOwned>(
                & $($mutable)? self,
                request: &(impl Serialize + ?Sized),
            ) -> Result<R, $CallError<$Error>> {
                let request = $Format(request).to_bytes().map_err($CallError::Encode)?;
                let reply = self.call(request).await?;
                let $Format(reply) = $Format::from_bytes(&reply).map_err($CallError::Decode)?;
                Ok(reply)
            }
        }
    };
}

/// Makes a method that sends a message.
macro_rules! typed_send {
    ($Format:ident, $name:literal, $send:ident of $($Type:ident)*, $SendError:ident) => {
        $(impl $Type {
            #[doc = concat!("Sends one message in ", $name, ". See [`Connection::send`] and [`", stringify!($Format), "`].")]
            ///
            /// # Errors
            ///
            #[doc = concat!("[`", stringify!($SendError), "`] says what failed. If the message can't be encoded,")]
            /// nothing is sent, and the next one can be.
            ///
            /// # Cancel safety
            ///
            /// Not cancel safe, as [`Connection::send`].
            pub async fn $send(
                &mut self,
                message: &(impl Serialize + ?Sized),
            ) -> Result<(), $SendError> {
                let message = $Format(message).to_bytes().map_err($SendError::Encode)?;
                Ok(self.send(message).await?)
            }
        })*
    };
}

/// Makes a method that receives a message.
macro_rules! typed_recv {
    ($Format:ident, $name:literal, $recv:ident of $($Type:ident)*, $RecvError:ident) => {
        $(impl $Type {
            #[doc = concat!("Receives one message in ", $name, ", or `None` once the other side has closed. See")]
            #[doc = concat!("[`Connection::recv`] and [`", stringify!($Format), "`].")]
            ///
            /// # Errors
            ///
            #[doc = concat!("[`", stringify!($RecvError), "`] says what failed. If the message can't be decoded,")]
            /// the next one can still be received. A task of
            /// [`serve_connections`](crate::serve_connections) that returns that error blames its
            /// client, as a handler that rejects a request does:
            /// [`Reason::Rejected`](crate::Reason::Rejected).
            ///
            /// # Cancel safety
            ///
            /// Cancel safe, as [`Connection::recv`].
            pub async fn $recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, $RecvError> {
                let Some(message) = self.recv().await? else {
                    return Ok(None);
                };
                match $Format::from_bytes(&message) {
                    Ok($Format(value)) => Ok(Some(value)),
                    Err(rejection) => {
                        self.identity().set_failed();
                        Err($RecvError::Decode(rejection))
                    }
                }
            }
        })*
    };
}

pub(super) use {typed_call, typed_errors, typed_format, typed_recv, typed_send};
