//! The code that all formats of typed messages share.

/// Makes a format's `from_bytes` and `to_bytes` work as an argument of a handler, as a reply, and
/// on a client.
macro_rules! typed_format {
    ($Format:ident, $name:literal, $call:ident, $EncodeError:ty, $Rejection:ident, $CallError:ident) => {
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

        /// A handler's reply can't be encoded.
        #[derive(Debug, thiserror::Error)]
        #[error("the reply can't be encoded as {}", $name)]
        struct EncodeReplyError(#[source] $EncodeError);

        #[doc = concat!("An error returned when [`Client::", stringify!($call), "`] fails.")]
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $CallError {
            /// The request can't be encoded. Nothing was sent.
            #[error("the request can't be encoded as {}; nothing was sent", $name)]
            Encode(#[source] $EncodeError),
            /// There is no reply.
            #[error(transparent)]
            Call(#[from] CallError),
            /// The reply can't be decoded. The client remains usable.
            #[error("the reply can't be decoded")]
            Decode(#[source] $Rejection),
        }

        impl From<$CallError> for io::Error {
            fn from(error: $CallError) -> Self {
                match error {
                    $CallError::Encode(_) => Self::new(io::ErrorKind::InvalidInput, error),
                    $CallError::Call(error) => error.into(),
                    $CallError::Decode(_) => Self::new(io::ErrorKind::InvalidData, error),
                }
            }
        }
    };
}

pub(super) use typed_format;
