//! The state that all handlers of a server share.

use std::{convert::Infallible, future::Future, marker::PhantomData, sync::Arc};

use crate::{
    error::BoxError,
    handler::{FromRequest, Handler, Reply, Request},
};

/// The server's state, or a part of it: what [`Serve::with_state`](crate::Serve::with_state) was
/// given.
///
/// Handlers take it as an argument. It is cloned for each request, so it is usually an [`Arc`] or a
/// struct of some. A server that was not given the state does not compile.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BoxError> {
/// use std::{collections::HashMap, future::IntoFuture, sync::{Arc, Mutex}};
/// use pipe_server::{Client, PipeListener, State, serve};
///
/// type Store = Arc<Mutex<HashMap<String, String>>>;
///
/// async fn look_up(State(store): State<Store>, key: String) -> String {
///     store.lock().unwrap().get(&key).cloned().unwrap_or_else(|| "nothing".into())
/// }
///
/// let name = format!("state-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let store = Store::default();
/// tokio::spawn(serve(listener, look_up).with_state(Arc::clone(&store)).into_future());
///
/// let mut client = Client::connect(&name).await?;
/// assert_eq!(client.call("color").await?, "nothing");
/// store.lock().unwrap().insert("color".into(), "blue".into());
/// assert_eq!(client.call("color").await?, "blue");
/// # Ok(()) }
/// ```
///
/// A server without the state:
///
/// ```compile_fail,E0277
/// # async fn example(listener: pipe_server::PipeListener) {
/// use pipe_server::{State, serve};
///
/// serve(listener, |State(number): State<u32>| async move { number.to_string() }).await;
/// # }
/// ```
///
/// A server with another state:
///
/// ```compile_fail,E0277
/// # async fn example(listener: pipe_server::PipeListener) {
/// use pipe_server::{State, serve};
///
/// serve(listener, |State(number): State<u32>| async move { number.to_string() })
///     .with_state("not a number")
///     .await;
/// # }
/// ```
///
/// With [`FromRef`], handlers take a part of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State<S>(pub S);

/// A part of a server's state, made from a reference to the whole, for handlers that take
/// [`State`] of the part. Each state is a part of itself.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
/// use pipe_server::{FromRef, PipeListener, State, serve};
///
/// #[derive(Clone)]
/// struct App {
///     greeting: &'static str,
///     requests: Arc<AtomicU64>,
/// }
///
/// impl FromRef<App> for Arc<AtomicU64> {
///     fn from_ref(app: &App) -> Self {
///         Arc::clone(&app.requests)
///     }
/// }
///
/// async fn count(State(requests): State<Arc<AtomicU64>>) -> String {
///     requests.fetch_add(1, Ordering::Relaxed).to_string()
/// }
///
/// # async fn example(listener: PipeListener) {
/// let app = App { greeting: "hello", requests: Arc::default() };
/// serve(listener, count).with_state(app).await;
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler takes `State<{Self}>`, but the server's state is `{S}`",
    label = "the server has no state of type `{Self}`",
    note = "give the server its state, as in `serve(listener, handler).with_state(state)`, or implement \
            `FromRef<{S}>` for `{Self}`"
)]
pub trait FromRef<S> {
    /// Makes the part.
    fn from_ref(state: &S) -> Self;
}

impl<S: Clone> FromRef<S> for S {
    fn from_ref(state: &S) -> Self {
        state.clone()
    }
}

impl<S, P> FromRequest<S> for State<P>
where
    S: Send + Sync + 'static,
    P: FromRef<S>,
{
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        let state = request.identity().state();
        let state = state.and_then(|state| state.downcast_ref::<S>());
        match state {
            Some(state) => Ok(Self(P::from_ref(state))),
            None => unreachable!("a request with the type of a state has one"),
        }
    }
}

/// A handler whose server has a state of type `S`, from
/// [`Serve::with_state`](crate::Serve::with_state).
#[derive(Debug)]
pub struct WithState<H, S> {
    handler: Arc<H>,
    _state: PhantomData<fn(S)>,
}

impl<H, S> WithState<H, S> {
    pub(crate) fn new(handler: H) -> Self {
        Self::of(Arc::new(handler))
    }

    fn of(handler: Arc<H>) -> Self {
        Self {
            handler,
            _state: PhantomData,
        }
    }
}

impl<H, T, S> Handler<T> for WithState<H, S>
where
    H: Handler<T, S>,
    S: 'static,
{
    // Not async: the future would contain the other one.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, BoxError>> + Send {
        self.handler.call(request.assume_state())
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        let handler = self.handler.for_connection();
        if Arc::ptr_eq(&handler, &self.handler) {
            return Arc::clone(self);
        }
        Arc::new(Self::of(handler))
    }

    fn ended(&self) -> impl Future<Output = BoxError> + Send {
        self.handler.ended()
    }
}
