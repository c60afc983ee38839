//! What the user's code returns besides replies.

use crate::error::BoxError;

/// What `authorize` and the code of a connection return: a `Result`, whose error is logged.
///
/// [`Serve::authorize`](crate::Serve::authorize) also takes a `bool`, which is whether to serve the client. The code of
/// [`serve_connections`](crate::serve_connections) may also return nothing.
///
/// This trait is sealed: it can't be implemented outside of this crate.
pub trait IntoResult: sealed::Sealed {
    /// Whether the type can say no.
    #[doc(hidden)]
    const DECIDES: bool = true;

    /// Converts it into a result.
    ///
    /// # Errors
    ///
    /// The error to be logged.
    fn into_result(self) -> Result<(), BoxError>;
}

impl IntoResult for () {
    const DECIDES: bool = false;

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
