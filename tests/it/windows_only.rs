//! Tests that need Windows: access lists and exclusive names.
//!
//! Wine stores access lists and returns them but does not enforce them, and it has no exclusive
//! names. Tests that fail there for this reason are skipped, and print so.

use std::io;

use pipe_server::{
    Access, BindError, Client, ClientOptions, ConnectError, ListenerOptions, PipeListener,
    os::windows::{AccessExt as _, Engine, ListenerOptionsExt as _},
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
async fn a_name_with_a_backslash_is_served_and_reached() {
    for engine in ENGINES {
        let name = format!(r"LOCAL\{}", unique_name().text);
        let options = ListenerOptions::new().engine(engine);
        let mut listener = options.bind(&name).unwrap();
        let path = format!(r"\\.\pipe\{name}");
        assert_eq!(listener.path().to_str(), Some(&*path));
        for address in [name.clone(), path, format!(r"\\?\pipe\{name}")] {
            let mut client = Client::connect(&address).await.unwrap();
            client.send(address.clone()).await.unwrap();
            let mut connection = listener.accept().await.unwrap();
            assert_eq!(connection.recv().await.unwrap().unwrap(), address);
        }
    }
}

#[tokio::test]
async fn a_user_denied_by_the_access_list_cannot_connect() {
    if wine_lacks("access checks") {
        return;
    }
    let user = this_user().await;
    let everyone = Access::sddl(format!("D:P(A;;GA;;;{user})(A;;0x12019b;;;WD)"));
    let cases = [
        (Access::CurrentUser, false),
        (Access::sddl(format!("D:P(A;;GA;;;{user})")), false),
        (Access::Everyone, true),
        (everyone, true),
    ];
    for engine in ENGINES {
        for (access, may_connect) in &cases {
            let listener = bind(engine, ListenerOptions::new().access(access.clone()));
            let address = listener.path();
            let without_this_user = WithoutThisUser::new().unwrap();
            // Opens the pipe on this thread, the runtime's only one.
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

/// The list in the docs of `Access`.
#[tokio::test]
async fn a_list_that_grants_its_owner_all_rights_can_be_served() {
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
        let options = ListenerOptions::new().access(Access::sddl("everybody"));
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
async fn a_name_served_by_a_plain_server_is_refused() {
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
async fn the_access_list_is_protected_and_names_only_the_user_and_system() {
    let user = this_user().await;
    for engine in ENGINES {
        // An entry that denies NETWORK would lock out users who log on through SSH.
        // `PIPE_REJECT_REMOTE_CLIENTS` rejects other machines instead.
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

/// This library's client never connects anonymously.
#[tokio::test]
async fn an_anonymous_client_has_no_peer() {
    if wine_lacks("anonymous clients") {
        return;
    }
    for engine in ENGINES {
        let mut listener = bind(engine, ListenerOptions::new());
        let address = listener.path().to_str().unwrap();
        let _client = PlainPipe::open_anonymously(address, GENERIC_READ | GENERIC_WRITE).unwrap();
        let connection = listener.accept().await.unwrap();
        let error = connection.peer().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("SECURITY_ANONYMOUS"), "{error}");
    }
}

/// The SID of this process's user, in text form.
async fn this_user() -> String {
    let (mut listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let _client = ClientOptions::new().connect_memory(&pipe).await.unwrap();
    let connection = listener.accept().await.unwrap();
    connection.peer().unwrap().user().to_string()
}

/// The access list of a pipe, read through a client's end.
fn access_list(engine: Engine, options: ListenerOptions) -> Vec<String> {
    let listener = bind(engine, options);
    let access = GENERIC_READ | GENERIC_WRITE | READ_CONTROL;
    let client = PlainPipe::open(listener.path().to_str().unwrap(), access).unwrap();
    entries(&client.access_list().unwrap())
}

/// The entries of an access list in canonical form. Asserts that the list is protected.
fn entries(list: &str) -> Vec<String> {
    let list = canonical_access_list(list).unwrap();
    let (flags, entries) = list.split_once('(').unwrap();
    assert!(flags.starts_with("D:P"), "not protected: {list}");
    let entries = entries.split('(');
    // Generic rights in a pipe's list map to file rights.
    entries.map(|entry| entry.replace(";GA;", ";FA;")).collect()
}
