//! Which public types, and which futures of public functions, are `Send`, `Sync` and `Unpin`:
//! losing one of them breaks the code of users.

use std::{
    cell::Cell,
    future::{Pending, ready},
    marker::{PhantomData, PhantomPinned},
    rc::Rc,
};

use pipe_server::{
    Access, AccessError, BindError, BoxError, Bytes, CallError, Client, ClientOptions,
    ConnectError, Connection, ConnectionInfo, CustomAccess, ErrorCounts, FromRef, ListenerOptions,
    NameError, Peer, PipeListener, PipeName, Reason, RecvError, RecvHalf, Rejection, Reply,
    Request, ReuniteError, SendError, SendHalf, Serve, ServeConnections, ServeFuture, Session,
    SessionRejection, SharedCallError, SharedCallErrorKind, SharedClient, SharedClientOptions,
    Shutdown, State, Stats, StatsSnapshot, Summary, Trust, TrustError, UserId, UserIdError,
    WithState,
};
#[cfg(feature = "test-util")]
use pipe_server::{Faults, MemoryPipe};
#[cfg(feature = "json")]
use pipe_server::{Json, JsonCallError, JsonRecvError, JsonRejection, JsonSendError};
#[cfg(feature = "postcard")]
use pipe_server::{
    Postcard, PostcardCallError, PostcardRecvError, PostcardRejection, PostcardSendError,
};
#[cfg(feature = "tower")]
use pipe_server::{SharedCall, TowerHandler};

/// Tells which auto traits `T` has. Inherent methods take precedence over those of [`Without`], and
/// exist only where `T` has the trait. This works only where `T` is known, not in a generic
/// function.
struct Probe<T>(PhantomData<fn(T)>);

impl<T> Probe<T> {
    const NEW: Self = Self(PhantomData);
}

impl<T: Send> Probe<T> {
    fn send(&self) -> &'static str {
        "Send"
    }
}

impl<T: Sync> Probe<T> {
    fn sync(&self) -> &'static str {
        "Sync"
    }
}

impl<T: Unpin> Probe<T> {
    fn unpin(&self) -> &'static str {
        "Unpin"
    }
}

trait Without {
    fn send(&self) -> &'static str {
        "!Send"
    }

    fn sync(&self) -> &'static str {
        "!Sync"
    }

    fn unpin(&self) -> &'static str {
        "!Unpin"
    }
}

impl<T> Without for Probe<T> {}

/// A probe of what a function returns, which is not called.
fn returned<A, T>(_function: impl FnOnce(A) -> T) -> Probe<T> {
    Probe::NEW
}

/// The auto traits that a probe finds.
macro_rules! traits {
    ($probe:expr) => {{
        let probe = $probe;
        format!("{} + {} + {}", probe.send(), probe.sync(), probe.unpin())
    }};
}

macro_rules! assert_types {
    ($expected:literal, $($type:ty),+ $(,)?) => {
        assert_all($expected, &[$((stringify!($type), traits!(Probe::<$type>::NEW))),+]);
    };
}

macro_rules! assert_futures {
    ($expected:literal, $($function:expr),+ $(,)?) => {
        assert_all($expected, &[$((stringify!($function), traits!(returned($function)))),+]);
    };
}

fn assert_all(expected: &str, found: &[(&str, String)]) {
    let others: Vec<_> = found
        .iter()
        .filter(|(_, traits)| traits != expected)
        .collect();
    assert!(others.is_empty(), "not {expected}: {others:#?}");
}

#[test]
fn what_is_probed_is_found() {
    assert_types!("Send + Sync + Unpin", (), Pending<()>);
    assert_types!("Send + !Sync + Unpin", Cell<u8>);
    assert_types!("!Send + !Sync + Unpin", Rc<u8>);
    assert_types!("Send + Sync + !Unpin", PhantomPinned);
    assert_futures!("Send + Sync + !Unpin", |()| async {});
    assert_futures!("!Send + !Sync + Unpin", ready::<Rc<u8>>);
}

#[test]
fn options_and_values_are_send_sync_and_unpin() {
    assert_types!(
        "Send + Sync + Unpin",
        Access,
        Bytes,
        ClientOptions,
        CustomAccess,
        ConnectionInfo,
        ErrorCounts,
        ListenerOptions,
        Peer,
        PipeName,
        Reason,
        Reply,
        Request,
        SharedClientOptions,
        Stats,
        StatsSnapshot,
        Summary,
        Trust,
        UserId,
    );
    #[cfg(windows)]
    assert_types!("Send + Sync + Unpin", pipe_server::os::windows::Engine);
    #[cfg(feature = "test-util")]
    assert_types!("Send + Sync + Unpin", Faults, MemoryPipe);
}

#[test]
fn errors_are_send_sync_and_unpin() {
    assert_types!(
        "Send + Sync + Unpin",
        AccessError,
        BindError,
        BoxError,
        CallError,
        SharedCallErrorKind,
        ConnectError,
        NameError,
        SessionRejection,
        RecvError,
        Rejection,
        SendError,
        SharedCallError,
        TrustError,
        UserIdError,
    );
    #[cfg(feature = "json")]
    assert_types!(
        "Send + Sync + Unpin",
        JsonCallError,
        JsonCallError<SharedCallError>,
        JsonRecvError,
        JsonRejection,
        JsonSendError,
    );
    #[cfg(feature = "postcard")]
    assert_types!(
        "Send + Sync + Unpin",
        PostcardCallError,
        PostcardCallError<SharedCallError>,
        PostcardRecvError,
        PostcardRejection,
        PostcardSendError,
    );
}

#[test]
fn what_holds_a_connection_is_send_sync_and_unpin() {
    assert_types!(
        "Send + Sync + Unpin",
        Client,
        Connection,
        RecvHalf,
        ReuniteError,
        SendHalf
    );
}

#[test]
fn listeners_and_shared_clients_are_send_sync_and_unpin() {
    assert_types!("Send + Sync + Unpin", PipeListener, SharedClient, Shutdown);
}

type EchoHandler = fn(Bytes) -> Bytes;

#[test]
fn servers_are_send_and_unpin() {
    assert_types!(
        "Send + !Sync + Unpin",
        Serve<EchoHandler, (Bytes,)>,
        Serve<EchoHandler, (Rc<u8>,)>,
        ServeConnections<fn(Connection, Shutdown)>,
        ServeFuture,
    );
}

#[test]
fn what_holds_a_value_is_as_the_value() {
    assert_types!("Send + Sync + Unpin", Session<u8>);
    // Shared by all handlers of its connection.
    assert_types!("!Send + !Sync + Unpin", Session<Cell<u8>>);
    assert_types!("Send + Sync + Unpin", State<u8>);
    assert_types!("Send + !Sync + Unpin", State<Cell<u8>>);
    assert_types!("!Send + !Sync + Unpin", State<Rc<u8>>);
    // The server holds the state, not the handler.
    assert_types!("Send + Sync + Unpin", WithState<EchoHandler, Rc<u8>>);
    assert_types!("!Send + !Sync + Unpin", WithState<Cell<u8>, u8>);
    #[cfg(feature = "json")]
    {
        assert_types!("Send + Sync + Unpin", Json<u8>);
        assert_types!("Send + !Sync + Unpin", Json<Cell<u8>>);
        assert_types!("!Send + !Sync + Unpin", Json<Rc<u8>>);
    }
    #[cfg(feature = "postcard")]
    {
        assert_types!("Send + Sync + Unpin", Postcard<u8>);
        assert_types!("Send + !Sync + Unpin", Postcard<Cell<u8>>);
        assert_types!("!Send + !Sync + Unpin", Postcard<Rc<u8>>);
    }
    #[cfg(feature = "tower")]
    {
        // The service is behind a lock.
        assert_types!(
            "Send + Sync + Unpin",
            TowerHandler<u8>,
            TowerHandler<Cell<u8>>
        );
        assert_types!("!Send + !Sync + Unpin", TowerHandler<Rc<u8>>);
    }
}

/// `FromRef` requires nothing of the state or of its part, so that it makes a part of any state.
#[test]
fn a_part_of_a_state_is_of_any_type() {
    struct Whole(Rc<u8>);

    impl FromRef<Whole> for Rc<u8> {
        fn from_ref(whole: &Whole) -> Self {
            Rc::clone(&whole.0)
        }
    }

    assert_eq!(*<Rc<u8>>::from_ref(&Whole(Rc::new(1))), 1);
}

#[test]
fn futures_that_connect_or_accept_are_send_and_sync() {
    assert_futures!(
        "Send + Sync + !Unpin",
        PipeListener::accept,
        |name: &'static str| Client::connect(name),
        |options: &'static ClientOptions| options.connect("name"),
        |name: &'static str| SharedClient::connect(name),
        |options: &'static SharedClientOptions| options.connect("name"),
    );
    #[cfg(feature = "test-util")]
    assert_futures!(
        "Send + Sync + !Unpin",
        MemoryPipe::connect,
        |(options, pipe): (&'static ClientOptions, &'static MemoryPipe)| {
            options.connect_memory(pipe)
        },
        |(options, pipe): (&'static SharedClientOptions, &'static MemoryPipe)| {
            options.connect_memory(pipe)
        },
    );
}

#[test]
fn futures_of_connections_are_send_and_sync() {
    assert_futures!(
        "Send + Sync + !Unpin",
        Connection::recv,
        |connection: &'static mut Connection| connection.send("message"),
        Connection::finish,
        RecvHalf::recv,
        |half: &'static mut SendHalf| half.send("message"),
        SendHalf::finish,
    );
    #[cfg(feature = "json")]
    assert_futures!(
        "Send + Sync + !Unpin",
        Connection::recv_json::<u8>,
        |connection: &'static mut Connection| connection.send_json("message"),
        RecvHalf::recv_json::<u8>,
        |half: &'static mut SendHalf| half.send_json("message"),
    );
    #[cfg(feature = "postcard")]
    assert_futures!(
        "Send + Sync + !Unpin",
        Connection::recv_postcard::<u8>,
        |connection: &'static mut Connection| connection.send_postcard("message"),
        RecvHalf::recv_postcard::<u8>,
        |half: &'static mut SendHalf| half.send_postcard("message"),
    );
}

#[test]
fn futures_of_clients_are_send_and_sync() {
    assert_futures!(
        "Send + Sync + !Unpin",
        |client: &'static mut Client| client.call("request"),
        |client: &'static mut Client| client.send("message"),
        Client::recv,
        Client::finish,
    );
    #[cfg(feature = "json")]
    assert_futures!(
        "Send + Sync + !Unpin",
        |client: &'static mut Client| client.call_json::<u8>("request"),
        |client: &'static mut Client| client.send_json("message"),
        Client::recv_json::<u8>,
    );
    #[cfg(feature = "postcard")]
    assert_futures!(
        "Send + Sync + !Unpin",
        |client: &'static mut Client| client.call_postcard::<u8>("request"),
        |client: &'static mut Client| client.send_postcard("message"),
        Client::recv_postcard::<u8>,
    );
}

#[test]
fn futures_of_shared_clients_are_send_and_sync() {
    assert_futures!(
        "Send + Sync + !Unpin",
        |client: &'static SharedClient| client.call("request"),
        SharedClient::shutdown,
    );
    #[cfg(feature = "json")]
    assert_futures!("Send + Sync + !Unpin", |client: &'static SharedClient| {
        client.call_json::<u8>("request")
    },);
    #[cfg(feature = "postcard")]
    assert_futures!("Send + Sync + !Unpin", |client: &'static SharedClient| {
        client.call_postcard::<u8>("request")
    },);
}

#[cfg(feature = "tower")]
#[test]
fn futures_of_services_are_send_and_unpin() {
    assert_types!("Send + !Sync + Unpin", SharedCall);
}
