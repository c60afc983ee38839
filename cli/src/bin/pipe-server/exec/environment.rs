//! The environment of commands.

use std::{env, ffi::OsString};

use pipe_server::{Peer, Request, UserId};
use tokio::process::Command;
use tracing::debug;

#[cfg(target_os = "linux")]
use crate::systemd;

/// What the environment variables of this program's options begin with.
const OPTIONS: &str = "PIPE_SERVER_";

/// The variables that a command does not inherit: they are meant for this process, and those of
/// options may be secrets.
pub(super) fn not_inherited() -> Vec<OsString> {
    let is_option = |name: &OsString| {
        let name = name.to_string_lossy();
        // Windows ignores the case.
        name.get(..OPTIONS.len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(OPTIONS))
    };
    let mut names: Vec<_> = env::vars_os().map(|(name, _)| name).collect();
    names.retain(is_option);
    #[cfg(target_os = "linux")]
    names.extend(systemd::VARIABLES.iter().map(OsString::from));
    names
}

/// The variables that describe the client. `None` unsets one, because an inherited value would
/// describe another client.
#[derive(Debug)]
pub(super) struct ClientVariables([(&'static str, Option<String>); 4]);

impl ClientVariables {
    pub(super) fn new(request: &Request, peer: Option<&Peer>) -> Self {
        if peer.is_none() {
            debug!("the command is not told who the client is, because the system does not know");
        }
        let (uid, sid) = match peer.map(Peer::user) {
            #[cfg(unix)]
            Some(UserId::Uid(uid)) => (Some(uid.to_string()), None),
            #[cfg(windows)]
            Some(UserId::Sid(sid)) => (None, Some(sid.clone())),
            _ => (None, None),
        };
        // 0 means a process outside this PID namespace.
        let process_id = peer.map(|peer| peer.process_id()).filter(|&id| id != 0);
        let connection_id = request.connection_id();
        Self([
            ("PIPE_PEER_UID", uid),
            ("PIPE_PEER_SID", sid),
            ("PIPE_PEER_PID", process_id.map(|id| id.to_string())),
            ("PIPE_CONNECTION_ID", Some(connection_id.to_string())),
        ])
    }

    pub(super) fn set_on(&self, command: &mut Command) {
        for (name, value) in &self.0 {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}
