//! Conversion of the values that the user's code returns, besides replies.

use crate::error::BoxError;

/// A value that `authorize` or a connection's task returns. It converts to a `Result` whose error
/// is logged.
///
/// [`Serve::authorize`](crate::Serve::authorize) also accepts a `bool`: whether to serve the
/// client. A connection's task, which is the future that the handler of
/// [`serve_connections`](crate::serve_connections) returns, may also return `()`.
///
/// This trait is sealed: it can't be implemented outside of this crate.
pub trait IntoResult: sealed::Sealed {
    /// Whether the type can express a refusal.
    #[doc(hidden)]
    const CAN_REFUSE: bool = true;

    /// Converts the value into a result.
    ///
    /// # Errors
    ///
    /// Returns the error to be logged.
    fn into_result(self) -> Result<(), BoxError>;
}

impl IntoResult for () {
    const CAN_REFUSE: bool = false;

    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl IntoResult for bool {
    fn into_result(self) -> Result<(), BoxError> {
        match self {
            true => Ok(()),
            false => Err("it returned false".into()),
        }
    }
}

impl<E: Into<BoxError>> IntoResult for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for () {}
    impl Sealed for bool {}
    impl<E> Sealed for Result<(), E> {}
}
