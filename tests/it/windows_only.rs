//! What only Windows has: access lists and names that nobody else can take.
//!
//! Wine keeps access lists and shows them but lets everybody in, and knows no exclusive names. What can't hold there
//! is left out there, and says so.

use pipe_server::{
    Access, BindError, Client, ClientOptions, ConnectError, ListenerOptions, PipeListener,
    os::windows::{Engine, ListenerOptionsExt as _},
};
use windows_sys::Win32::{
    Foundation::{GENERIC_READ, GENERIC_WRITE},
    Storage::FileSystem::{PIPE_ACCESS_DUPLEX, READ_CONTROL},
    System::Pipes::PIPE_TYPE_MESSAGE,
};

use support::{
    unique_name,
    win32::{PlainPipe, WithoutThisUser, canonical_access_list, wine_lacks},
};

const ENGINES: [Engine; 2] = [Engine::Overlapped, Engine::Tokio];

fn bind(engine: Engine, options: ListenerOptions) -> PipeListener {
    options.engine(engine).bind(unique_name().text).unwrap()
}

#[tokio::test]
async fn a_user_whom_the_access_list_denies_can_not_connect() {
    if wine_lacks("access checks") {
        return;
    }
    let user = this_user().await;
    let everyone = Access::Sddl(format!("D:P(A;;GA;;;{user})(A;;0x12019b;;;WD)"));
    let cases = [
        (Access::CurrentUser, false),
        (Access::Sddl(format!("D:P(A;;GA;;;{user})")), false),
        (Access::Everyone, true),
        (everyone, true),
    ];
    for engine in ENGINES {
        for (access, may_connect) in &cases {
            let listener = bind(engine, ListenerOptions::new().access(access.clone()));
            let address = listener.path();
            let without_this_user = WithoutThisUser::new().unwrap();
            // Opened on this thread, the only one of the runtime.
            let connected = Client::connect(address).await;
            drop(without_this_user);
            match connected {
                Ok(_) => assert!(may_connect, "{access:?}"),
                Err(ConnectError::Denied { .. }) => assert!(!may_connect, "{access:?}"),
                Err(error) => panic!("{access:?}: {error:?}"),
            }
        }
    }
}

/// The list in the documentation of `Access`.
#[tokio::test]
async fn a_list_that_gives_its_owner_all_rights_can_be_served() {
    for engine in ENGINES {
        let access = "sddl:D:P(A;;GA;;;OW)(A;;0x12019b;;;AU)".parse().unwrap();
        let listener = bind(engine, ListenerOptions::new().access(access));
        let connected = Client::connect(listener.path()).await;
        assert!(connected.is_ok(), "{connected:?}");
    }
}

#[tokio::test]
async fn a_descriptor_that_is_not_understood_is_an_option_error() {
    for engine in ENGINES {
        let options = ListenerOptions::new().access(Access::Sddl("everybody".to_owned()));
        let error = options.engine(engine).bind(unique_name().text).unwrap_err();
        let is_option = matches!(
            error,
            BindError::Option {
                option: "access",
                ..
            }
        );
        assert!(is_option, "{error:?}");
        assert!(error.to_string().contains("\"everybody\""), "{error}");
    }
}

#[tokio::test]
async fn a_name_is_served_once() {
    if wine_lacks("exclusive names") {
        return;
    }
    for first in ENGINES {
        let listener = bind(first, ListenerOptions::new());
        let address = listener.path();
        for second in ENGINES {
            let options = ListenerOptions::new().engine(second);
            let error = options.bind(address).unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        }
        assert!(Client::connect(address).await.is_ok());
    }
}

#[tokio::test]
async fn a_name_that_a_plain_server_has_is_refused() {
    if wine_lacks("exclusive names") {
        return;
    }
    for engine in ENGINES {
        let address = format!(r"\\.\pipe\{}", unique_name().text);
        let _squatter = PlainPipe::create(&address, PIPE_ACCESS_DUPLEX, PIPE_TYPE_MESSAGE).unwrap();
        let options = ListenerOptions::new().engine(engine);
        let error = options.bind(&address).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn the_access_list_is_protected_and_names_the_user_and_system_alone() {
    let user = this_user().await;
    for engine in ENGINES {
        // An entry for NETWORK would shut out users who log on through SSH: `PIPE_REJECT_REMOTE_CLIENTS` is
        // what keeps other machines out.
        for allow_remote in [false, true] {
            let options = ListenerOptions::new().allow_remote(allow_remote);
            let list = format!("D:P(A;;FA;;;{user})(A;;FA;;;SY)");
            assert_eq!(access_list(engine, options), entries(&list));
        }
    }
}

#[tokio::test]
async fn everyone_may_read_and_write_but_not_create_instances() {
    let user = this_user().await;
    for engine in ENGINES {
        let options = ListenerOptions::new().access(Access::Everyone);
        let list = format!("D:P(A;;FA;;;{user})(A;;FA;;;SY)(A;;0x12019b;;;WD)");
        assert_eq!(access_list(engine, options), entries(&list));
    }
}

#[tokio::test]
async fn a_client_for_its_own_user_alone_connects_to_its_own_server() {
    for engine in ENGINES {
        let listener = bind(engine, ListenerOptions::new());
        let options = ClientOptions::new().only_current_user(true);
        let connected = options.connect(listener.path()).await;
        assert!(connected.is_ok(), "{connected:?}");
    }
}

/// The user that this process runs as, as a SID in text form.
async fn this_user() -> String {
    let (mut listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let _client = ClientOptions::new().connect_memory(&pipe).await.unwrap();
    let connection = listener.accept().await.unwrap();
    connection.peer().unwrap().user().to_string()
}

/// The access list of a pipe, as its client sees it.
fn access_list(engine: Engine, options: ListenerOptions) -> Vec<String> {
    let listener = bind(engine, options);
    let access = GENERIC_READ | GENERIC_WRITE | READ_CONTROL;
    let client = PlainPipe::open(listener.path().to_str().unwrap(), access).unwrap();
    entries(&client.access_list().unwrap())
}

/// The entries of an access list, which has to be protected, in the system's own words.
fn entries(list: &str) -> Vec<String> {
    let list = canonical_access_list(list).unwrap();
    let (flags, entries) = list.split_once('(').unwrap();
    assert!(flags.starts_with("D:P"), "not protected: {list}");
    let entries = entries.split('(');
    // What is generic in a pipe's list stands for the rights of a file.
    entries.map(|entry| entry.replace(";GA;", ";FA;")).collect()
}
