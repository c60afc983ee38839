//! Admission of clients, and the limit on connections per user.

use std::{
    collections::HashMap,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::{failure::Failure, guard::with_timeout, unidentified::Decision};
use crate::{
    connection::{AnySession, Identity},
    defaults,
    error::BoxError,
    handler::ConnectionInfo,
    listener::PipeListener,
    peer::{Peer, UserId},
    sync::Mutex,
    trust::Trust,
};

/// The share of `max_instances` that is kept for the server's own user and the system: an eighth,
/// and at least one place. Several, so that an operator can look after the server while a client of
/// that user stays connected.
const RESERVED_SHARE: usize = 8;

/// A function that decides whether to serve a client.
pub(super) type Authorize =
    Box<dyn Fn(Peer) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync>;

/// A function that creates a client's session, or refuses the client.
pub(super) type OnConnect = Box<
    dyn Fn(ConnectionInfo) -> Pin<Box<dyn Future<Output = Result<AnySession, BoxError>> + Send>>
        + Send
        + Sync,
>;

/// The options of a server's admission.
#[derive(Default)]
pub(super) struct AdmissionOptions {
    pub(super) authorize: Option<Authorize>,
    pub(super) on_connect: Option<OnConnect>,
    pub(super) user_limit: UserLimit,
    /// How long `authorize` and `on_connect` may take.
    pub(super) time_limit: Option<Duration>,
}

/// The rules by which a server admits clients.
pub(super) struct Admission {
    options: AdmissionOptions,
    users: Arc<Users>,
}

/// The progress of one client's admission. It is kept while the client is served.
pub(super) struct AdmissionProgress {
    rules: Arc<Admission>,
    is_identified: bool,
    is_authorized: bool,
    has_session: bool,
    slot: Option<ConnectionSlot>,
    /// `Some` while the client may lose its place because it is not identified.
    decision: Option<Decision>,
}

impl AdmissionProgress {
    /// Begins the admission of a client.
    pub(super) fn new(rules: &Arc<Admission>) -> Self {
        let (is_authorized, is_bounded) =
            (rules.options.authorize.is_none(), rules.users.is_bounded());
        Self {
            rules: Arc::clone(rules),
            is_identified: is_authorized && !is_bounded,
            is_authorized,
            has_session: false,
            slot: None,
            decision: None,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_identified && self.has_session
    }

    /// Counts the client among the connections of its user, or refuses it. Called when the client
    /// connects, before it is given a task, and, if the system could not identify it by then, again
    /// once its first message was `received`.
    pub(super) fn enter(&mut self, identity: &Identity, received: bool) -> Result<(), Failure> {
        if self.is_identified {
            return Ok(());
        }
        let peer = identity.peer();
        if peer.is_ok() || received {
            self.is_identified = true;
            self.slot = self.rules.users.enter(peer.as_ref().ok().map(Peer::user))?;
        }
        Ok(())
    }

    /// Returns the decision whether the client keeps its place, which has to be taken before the
    /// client is identified. `None` if the client need not be identified any more, or if the number
    /// of places is unlimited.
    pub(super) fn decide_later(&mut self) -> Option<Decision> {
        let is_open = !self.is_identified && self.rules.users.max_others < usize::MAX;
        self.decision = is_open.then(Decision::default);
        self.decision.clone()
    }

    /// Decides whether to serve the client, and creates its session. Called after
    /// [`enter`](Self::enter) and, if the client was not identified by then, again once its first
    /// message was `received`.
    pub(super) async fn admit(
        &mut self,
        identity: &Arc<Identity>,
        received: bool,
    ) -> Result<(), Failure> {
        if received
            && self
                .decision
                .take()
                .is_some_and(|decision| !decision.take())
        {
            // The accept loop has aborted this task, which ends here.
            pending::<()>().await;
        }
        self.enter(identity, received)?;
        if !self.is_authorized {
            if !self.is_identified {
                return Ok(());
            }
            self.is_authorized = true;
            self.rules.authorize(identity.peer()).await?;
        }
        if !self.has_session {
            self.has_session = true;
            self.rules.begin_session(identity).await?;
        }
        Ok(())
    }
}

impl Admission {
    /// The rules for the clients of `listener`.
    pub(super) fn new(options: AdmissionOptions, listener: &PipeListener) -> Self {
        let users = Users::new(
            options.user_limit,
            listener.admits_others(),
            listener.instances.max(),
        );
        let users = Arc::new(users);
        Self { options, users }
    }

    /// Returns whether clients that are not identified have to leave, with so many clients
    /// connected.
    pub(super) fn is_short_of_places(&self, connected: usize) -> bool {
        connected > self.users.max_others
    }

    /// Admits everyone.
    #[cfg(test)]
    pub(super) fn unlimited() -> Self {
        Self {
            options: AdmissionOptions::default(),
            users: Arc::new(Users::new(UserLimit::Unlimited, false, usize::MAX)),
        }
    }

    async fn authorize(&self, peer: io::Result<Peer>) -> Result<(), Failure> {
        let Some(authorize) = &self.options.authorize else {
            return Ok(());
        };
        let peer = peer.map_err(|error| Failure::NotAuthorized(error.into()))?;
        with_timeout(self.options.time_limit, &mut authorize(peer))
            .await
            .map_err(|time| Failure::ConnectTimeout("authorize", time))?
            .map_err(Failure::NotAuthorized)
    }

    async fn begin_session(&self, identity: &Arc<Identity>) -> Result<(), Failure> {
        let Some(on_connect) = &self.options.on_connect else {
            return Ok(());
        };
        let mut session = on_connect(ConnectionInfo::new(identity));
        let session = with_timeout(self.options.time_limit, &mut session)
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

/// Whether `user` is neither the server's own user nor the system. An unidentified user could be
/// anyone.
fn is_other(user: Option<&UserId>) -> bool {
    !user.is_some_and(|user| Trust::System.includes(user).unwrap_or(false))
}

/// The number of connections of each limited user.
#[derive(Debug)]
struct Users {
    limit: UserLimit,
    /// The number of connections that all other users may have together.
    max_others: usize,
    connections: Mutex<UserConnections>,
}

#[derive(Debug, Default)]
struct UserConnections {
    by_user: HashMap<Option<UserId>, usize>,
    /// The connections of users other than the server's own and the system.
    others: usize,
}

impl Users {
    /// The limits of a listener with `max_instances`. Drops the default limit if no other user can
    /// connect, because identifying a client takes several system calls on Windows.
    fn new(limit: UserLimit, admits_others: bool, max_instances: usize) -> Self {
        let limit = match limit {
            UserLimit::OtherUsers(_) if !admits_others => UserLimit::Unlimited,
            UserLimit::OtherUsers(limit) => {
                UserLimit::OtherUsers(limit.min(max_instances / 2).max(1))
            }
            limit => limit,
        };
        let reserved = match max_instances {
            1 => 0,
            instances => (instances / RESERVED_SHARE).max(1),
        };
        let max_others = match limit {
            UserLimit::Unlimited => usize::MAX,
            _ if max_instances == usize::MAX => usize::MAX,
            _ => max_instances - reserved,
        };
        Self {
            limit,
            max_others,
            connections: Mutex::default(),
        }
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
        let is_other = is_other(user);
        let limit = match self.limit {
            UserLimit::Unlimited => return Ok(None),
            UserLimit::OtherUsers(_) if !is_other => return Ok(None),
            UserLimit::OtherUsers(limit) | UserLimit::AllUsers(limit) => limit,
        };
        let mut connections = self.connections.lock();
        let user = user.cloned();
        let count = connections.by_user.get(&user).copied().unwrap_or(0);
        if count >= limit {
            return Err(Failure::TooManyConnections(limit));
        }
        if is_other && connections.others >= self.max_others {
            return Err(Failure::NoPlaceForOthers(self.max_others));
        }
        connections.by_user.insert(user.clone(), count + 1);
        connections.others += usize::from(is_other);
        drop(connections);
        Ok(Some(ConnectionSlot {
            users: Arc::clone(self),
            user,
            is_other,
        }))
    }
}

/// A counted connection of a user. Dropping it ends the count.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    users: Arc<Users>,
    user: Option<UserId>,
    is_other: bool,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut connections = self.users.connections.lock();
        connections.others -= usize::from(self.is_other);
        if let Some(count) = connections.by_user.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.by_user.remove(&self.user);
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

    fn users_of(limit: UserLimit, max_instances: usize) -> Arc<Users> {
        Arc::new(Users::new(limit, true, max_instances))
    }

    /// As many connections of `user` as are admitted, and the text of the refusal.
    fn enter_all(users: &Arc<Users>, user: Option<&UserId>) -> (Vec<ConnectionSlot>, String) {
        let mut slots = Vec::new();
        loop {
            match users.enter(user) {
                Ok(slot) => slots.push(slot.expect("the user has no limit")),
                Err(refused) => return (slots, refused.to_string()),
            }
        }
    }

    #[test]
    #[cfg_attr(all(windows, pipe_model), ignore = "asks for this user")]
    fn by_default_this_user_and_the_system_are_not_bounded_and_everybody_else_is() {
        let [system, own, other] = users();
        let users = users_of(UserLimit::default(), usize::MAX);
        for trusted in [&system, &own] {
            assert!(users.enter(Some(trusted)).unwrap().is_none());
        }
        for limited in [Some(&other), None] {
            let (slots, refused) = enter_all(&users, limited);
            assert_eq!(slots.len(), 256);
            assert!(refused.contains("has 256 connections already"), "{refused}");
        }
    }

    #[test]
    #[cfg_attr(all(windows, pipe_model), ignore = "asks for this user")]
    fn another_user_gets_half_of_the_places_and_all_of_them_leave_an_eighth() {
        let [_, own, other] = users();
        for (max_instances, share, all) in [
            (1, 1, 1),
            (2, 1, 1),
            (3, 1, 2),
            (4, 2, 3),
            (15, 7, 14),
            (64, 32, 56),
            (512, 256, 448),
            (10_000, 256, 512),
        ] {
            let users = users_of(UserLimit::default(), max_instances);
            let (one, refused) = enter_all(&users, Some(&other));
            assert_eq!(one.len(), share, "{max_instances}");
            assert!(refused.contains("already ("), "{refused}");
            // A further user, who gets what is left.
            let (rest, _) = enter_all(&users, None);
            assert_eq!(share + rest.len(), all, "{max_instances}");
            assert!(users.enter(Some(&own)).unwrap().is_none());
            drop(one);
            assert!(users.enter(Some(&other)).is_ok());
        }
    }

    #[test]
    #[cfg_attr(all(windows, pipe_model), ignore = "asks for this user")]
    fn a_limit_for_everyone_keeps_places_for_this_user_too() {
        let [_, own, other] = users();
        let users = users_of(UserLimit::AllUsers(9), 8);
        let (others, refused) = enter_all(&users, Some(&other));
        assert_eq!(others.len(), 7);
        assert!(refused.contains("(max_instances)"), "{refused}");
        let (owns, refused) = enter_all(&users, Some(&own));
        assert_eq!(owns.len(), 9);
        assert!(refused.contains("(max_connections_per_user)"), "{refused}");
    }

    #[test]
    fn the_default_limit_is_dropped_where_no_others_can_connect() {
        assert!(Users::new(UserLimit::default(), true, 9).is_bounded());
        assert!(!Users::new(UserLimit::default(), false, 9).is_bounded());
        assert!(Users::new(UserLimit::AllUsers(9), false, 9).is_bounded());
    }

    #[test]
    #[cfg_attr(all(windows, pipe_model), ignore = "asks for this user")]
    fn users_are_counted_separately_and_unidentified_ones_together() {
        let users = users_of(UserLimit::AllUsers(2), 9);
        let [one, _, other] = self::users();
        let first = users.enter(Some(&one)).unwrap();
        let _second = users.enter(Some(&one)).unwrap();
        assert!(users.enter(Some(&one)).is_err());
        let _unknown = [users.enter(None).unwrap(), users.enter(None).unwrap()];
        assert!(users.enter(None).is_err());
        drop(users.enter(Some(&other)).unwrap());
        drop(first);
        assert!(users.enter(Some(&one)).is_ok());
        assert_eq!(users.connections.lock().by_user.len(), 2);
    }
}
