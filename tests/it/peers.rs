//! What is known of the other side.

use pipe_server::UserId;
use proptest::{prelude::*, test_runner::Config};

fn user() -> impl Strategy<Value = UserId> {
    #[cfg(unix)]
    return any::<u32>().prop_map(UserId::Uid);
    #[cfg(windows)]
    return "S-1-(0|[1-9][0-9]{0,8})(-(0|[1-9][0-9]{0,8})){1,15}".prop_map(UserId::Sid);
}

proptest! {
    #![proptest_config(Config {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn a_user_is_displayed_as_it_is_parsed(user in user()) {
        prop_assert_eq!(user.to_string().parse(), Ok(user));
    }
}

#[cfg(target_os = "linux")]
mod process_descriptors {
    use std::{fs, future::IntoFuture as _, io, os::fd::AsRawFd as _};

    use pipe_server::{
        Bytes, Client, ListenerOptions, Peer, PipeListener, os::linux::PeerExt as _, serve,
    };
    use support::unique_name;

    /// Whether the kernel has them (6.5).
    fn are_supported() -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release
            .split(['.', '-'])
            .map(|number| number.parse().unwrap_or(0));
        let version: [u32; 2] = [numbers.next().unwrap(), numbers.next().unwrap()];
        version >= [6, 5]
    }

    /// The process that the peer's descriptor stands for.
    fn process_id(peer: &Peer) -> io::Result<u32> {
        let descriptor = peer.pidfd()?;
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
        let information = fs::read_to_string(path)?;
        let pid = information
            .lines()
            .find_map(|line| line.strip_prefix("Pid:"));
        Ok(pid.unwrap().trim().parse().unwrap())
    }

    #[tokio::test]
    async fn both_sides_open_one_of_the_other_while_connected() {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let client = Client::connect(&name.text).await.unwrap();
        let connection = listener.accept().await.unwrap();
        let peers = [client.peer().unwrap(), connection.peer().unwrap()];
        for peer in &peers {
            if are_supported() {
                assert_eq!(process_id(peer).unwrap(), std::process::id());
            } else {
                let error = peer.pidfd().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            }
        }
        drop((client, connection));
        for peer in &peers {
            let error = peer.pidfd().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        }
    }

    #[tokio::test]
    async fn a_handler_and_authorize_can_open_one() {
        if !are_supported() {
            return;
        }
        let name = unique_name();
        let listener = PipeListener::bind(&name.text).unwrap();
        let handler =
            |peer: Peer, _: Bytes| async move { process_id(&peer).map(|id| id.to_string()) };
        let serving = serve(listener, handler)
            .authorize(|peer: Peer| async move { process_id(&peer).map(|_| ()) });
        let server = tokio::spawn(serving.into_future());
        let mut client = Client::connect(&name.text).await.unwrap();
        let reply = client.call("who am I?").await.unwrap();
        assert_eq!(reply, std::process::id().to_string());
        server.abort();
    }

    #[tokio::test]
    async fn a_peer_in_memory_has_none() {
        let (mut listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let _client = pipe.connect().await.unwrap();
        let peer = listener.accept().await.unwrap().peer().unwrap();
        let error = peer.pidfd().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    }
}
