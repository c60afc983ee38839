//! Admission of clients, and the limit on connections per user.

use std::{collections::HashMap, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use super::{failure::Failure, guard::with_timeout};
use crate::{
    connection::{AnySession, Identity},
    defaults,
    error::BoxError,
    handler::ConnectionInfo,
    mutex::Mutex,
    peer::{Peer, UserId},
    trust::Trust,
};

/// A function that decides whether to serve a client.
pub(super) type Authorize =
    Box<dyn Fn(Peer) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync>;

/// A function that creates a client's session, or refuses the client.
pub(super) type OnConnect = Box<
    dyn Fn(ConnectionInfo) -> Pin<Box<dyn Future<Output = Result<AnySession, BoxError>> + Send>>
        + Send
        + Sync,
>;

/// The rules by which a server admits clients.
pub(super) struct Admission {
    pub(super) authorize: Option<Authorize>,
    pub(super) on_connect: Option<OnConnect>,
    pub(super) users: Arc<Users>,
    pub(super) time_limit: Option<Duration>,
}

/// The progress of one client's admission.
#[derive(Debug)]
pub(super) struct AdmissionProgress {
    is_identified: bool,
    has_session: bool,
    slot: Option<ConnectionSlot>,
}

impl AdmissionProgress {
    pub(super) fn is_complete(&self) -> bool {
        self.is_identified && self.has_session
    }
}

impl Admission {
    /// Begins the admission of a client.
    pub(super) fn begin(&self) -> AdmissionProgress {
        AdmissionProgress {
            is_identified: self.authorize.is_none() && !self.users.is_bounded(),
            has_session: false,
            slot: None,
        }
    }

    /// Decides whether to serve the client, and creates its session. Called when the client
    /// connects and, if the system could not identify it by then, again once its first message was
    /// `received`.
    pub(super) async fn admit(
        &self,
        progress: &mut AdmissionProgress,
        identity: &Arc<Identity>,
        received: bool,
    ) -> Result<(), Failure> {
        if !progress.is_identified {
            match identity.peer() {
                Err(_) if !received => {
                    if self.authorize.is_some() {
                        return Ok(());
                    }
                }
                peer => {
                    progress.is_identified = true;
                    progress.slot = self.users.enter(peer.as_ref().ok().map(Peer::user))?;
                    self.authorize(peer).await?;
                }
            }
        }
        if !progress.has_session {
            progress.has_session = true;
            self.begin_session(identity).await?;
        }
        Ok(())
    }

    async fn authorize(&self, peer: io::Result<Peer>) -> Result<(), Failure> {
        let Some(authorize) = &self.authorize else {
            return Ok(());
        };
        let peer = peer.map_err(|error| Failure::NotAuthorized(error.into()))?;
        with_timeout(self.time_limit, &mut authorize(peer))
            .await
            .map_err(|time| Failure::ConnectTimeout("authorize", time))?
            .map_err(Failure::NotAuthorized)
    }

    async fn begin_session(&self, identity: &Arc<Identity>) -> Result<(), Failure> {
        let Some(on_connect) = &self.on_connect else {
            return Ok(());
        };
        let mut session = on_connect(ConnectionInfo::new(identity));
        let session = with_timeout(self.time_limit, &mut session)
            .await
            .map_err(|time| Failure::ConnectTimeout("on_connect", time))?
            .map_err(Failure::Refused)?;
        identity.set_session(session);
        Ok(())
    }
}

/// The users whose connections are limited, and the limit for each of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum UserLimit {
    Unlimited,
    /// Everyone except the server's own user and the system, who could stop the server anyway.
    OtherUsers(usize),
    AllUsers(usize),
}

impl Default for UserLimit {
    fn default() -> Self {
        Self::OtherUsers(defaults::MAX_CONNECTIONS_PER_USER)
    }
}

impl UserLimit {
    /// The limit for `user`. An unidentified user could be anyone.
    fn of(self, user: Option<&UserId>) -> Option<usize> {
        match self {
            Self::Unlimited => None,
            Self::AllUsers(limit) => Some(limit),
            Self::OtherUsers(limit) => {
                let is_trusted =
                    user.is_some_and(|user| Trust::System.includes(user).unwrap_or(false));
                (!is_trusted).then_some(limit)
            }
        }
    }
}

/// The number of connections of each limited user.
#[derive(Debug)]
pub(super) struct Users {
    limit: UserLimit,
    connections: Mutex<HashMap<Option<UserId>, usize>>,
}

impl Users {
    /// Drops the default limit if no other user can connect, because identifying a client takes
    /// several system calls on Windows.
    pub(super) fn new(limit: UserLimit, admits_others: bool) -> Self {
        let limit = match limit {
            UserLimit::OtherUsers(_) if !admits_others => UserLimit::Unlimited,
            limit => limit,
        };
        let connections = Mutex::default();
        Self { limit, connections }
    }

    /// Returns whether any connections have to be counted.
    pub(super) fn is_bounded(&self) -> bool {
        !matches!(self.limit, UserLimit::Unlimited)
    }

    /// Counts a connection of `user` until the returned slot is dropped. Returns `None` if the user
    /// has no limit.
    pub(super) fn enter(
        self: &Arc<Self>,
        user: Option<&UserId>,
    ) -> Result<Option<ConnectionSlot>, Failure> {
        let Some(limit) = self.limit.of(user) else {
            return Ok(None);
        };
        let user = user.cloned();
        let mut connections = self.connections.lock();
        let count = connections.get(&user).copied().unwrap_or(0);
        if count >= limit {
            return Err(Failure::TooManyConnections(limit));
        }
        connections.insert(user.clone(), count + 1);
        drop(connections);
        let users = Arc::clone(self);
        Ok(Some(ConnectionSlot { users, user }))
    }
}

/// A counted connection of a user. Dropping it ends the count.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    users: Arc<Users>,
    user: Option<UserId>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut connections = self.users.connections.lock();
        if let Some(count) = connections.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The system, this user and another one.
    #[cfg(unix)]
    fn users() -> [UserId; 3] {
        let own = rustix::process::geteuid().as_raw();
        [0, own, own + 1].map(UserId::Uid)
    }

    #[cfg(windows)]
    fn users() -> [UserId; 3] {
        #[cfg(pipe_model)]
        let own = "S-1-5-18".to_owned();
        #[cfg(not(pipe_model))]
        let own = crate::engine::windows::current_user().unwrap();
        ["S-1-5-18", &own, "S-1-5-19"].map(|sid| UserId::Sid(sid.to_owned()))
    }

    #[test]
    #[cfg_attr(all(windows, pipe_model), ignore = "asks for this user")]
    fn by_default_this_user_and_the_system_are_not_bounded_and_everybody_else_is() {
        let [system, own, other] = users();
        let limit = UserLimit::default();
        assert_eq!(limit.of(Some(&system)), None);
        assert_eq!(limit.of(Some(&own)), None);
        assert_eq!(limit.of(Some(&other)), Some(256));
        assert_eq!(limit.of(None), Some(256));
    }

    #[test]
    fn the_default_limit_is_dropped_where_no_others_can_connect() {
        assert!(Users::new(UserLimit::default(), true).is_bounded());
        assert!(!Users::new(UserLimit::default(), false).is_bounded());
        assert!(Users::new(UserLimit::AllUsers(9), false).is_bounded());
    }

    #[test]
    fn users_are_counted_separately_and_unidentified_ones_together() {
        let users = Arc::new(Users::new(UserLimit::AllUsers(2), false));
        let [one, _, other] = self::users();
        let first = users.enter(Some(&one)).unwrap();
        let _second = users.enter(Some(&one)).unwrap();
        assert!(users.enter(Some(&one)).is_err());
        let _unknown = [users.enter(None).unwrap(), users.enter(None).unwrap()];
        assert!(users.enter(None).is_err());
        drop(users.enter(Some(&other)).unwrap());
        drop(first);
        assert!(users.enter(Some(&one)).is_ok());
        assert_eq!(users.connections.lock().len(), 2);
    }
}
