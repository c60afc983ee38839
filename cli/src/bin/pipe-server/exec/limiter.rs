//! How many commands run at the same time, shared fairly between users.
//!
//! A permit goes to the waiting user who holds the fewest, and users who hold as many take turns:
//! however many connections a user has, others wait for the end of a command and not for that
//! user's queue. If nothing is free, an idle permit is asked back from the user who holds most.
//! Only the user is the key, because a client can have as many connections and processes as it
//! likes.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, Waker},
};

use pipe_server::UserId;
use pipe_server_cli::mutex::Mutex;
use tokio::sync::oneshot;

/// `None` is a user that the system does not know.
type User = Option<UserId>;

/// Permits for commands.
#[derive(Debug)]
pub(crate) struct FairLimiter {
    shares: Mutex<Shares>,
    /// How many permits one user may hold.
    most_per_user: usize,
}

/// A command that may run until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<FairLimiter>,
    user: User,
    id: u64,
}

#[derive(Debug, Default)]
struct Shares {
    free: usize,
    /// Those who hold or wait for a permit.
    users: Vec<Share>,
    next_id: u64,
}

/// What one user holds and waits for.
#[derive(Debug)]
struct Share {
    user: User,
    held: usize,
    /// The number of the last permit that this user got.
    last: u64,
    /// In FIFO order.
    waiting: VecDeque<oneshot::Sender<Permit>>,
    /// Permits that may be asked back, the one that has been idle for longest first.
    idle: VecDeque<IdlePermit>,
    /// How many permits were asked back for this user and are not returned yet.
    coming: usize,
}

#[derive(Debug)]
struct IdlePermit {
    id: u64,
    waker: Waker,
    /// The user that it was asked back for.
    wanted_by: Option<User>,
}

impl FairLimiter {
    /// Up to `permits` at the same time, and of them `most_per_user` for one user.
    pub(crate) fn new(permits: usize, most_per_user: usize) -> Self {
        let shares = Shares {
            free: permits,
            ..Shares::default()
        };
        Self {
            shares: Mutex::new(shares),
            most_per_user,
        }
    }

    /// Returns a permit for `user`, or the receiver of one if it has to wait. Dropping the receiver
    /// gives up the place in the queue.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        user: User,
    ) -> Result<Permit, oneshot::Receiver<Permit>> {
        let (sender, mut receiver) = oneshot::channel();
        let mut shares = self.lock();
        shares.of(&user).waiting.push_back(sender);
        self.settle(shares);
        receiver.try_recv().map_err(|_| receiver)
    }

    /// Gives free permits to those who wait, and asks for the return of idle ones.
    fn settle(self: &Arc<Self>, mut shares: MutexGuard<'_, Shares>) {
        for share in &mut shares.users {
            // Clients that come and go would make the queue longer and longer.
            share.waiting.retain(|waiting| !waiting.is_closed());
        }
        let mut abandoned = Vec::new();
        while let Some((waiting, permit)) = shares.grant(self) {
            abandoned.extend(waiting.send(permit).err());
        }
        shares.ask_back(self.most_per_user);
        shares.users.retain(|share| !share.is_over());
        // Returns those permits, which takes the lock.
        drop(shares);
        drop(abandoned);
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock()
    }
}

impl Shares {
    fn of(&mut self, user: &User) -> &mut Share {
        let known = self.users.iter().position(|share| share.user == *user);
        let index = known.unwrap_or_else(|| {
            self.users.push(Share::new(user.clone()));
            self.users.len() - 1
        });
        &mut self.users[index]
    }

    /// The next permit and who gets it: of the users who hold the fewest, the one who got none for
    /// longest.
    fn grant(&mut self, limiter: &Arc<FairLimiter>) -> Option<(oneshot::Sender<Permit>, Permit)> {
        if self.free == 0 {
            return None;
        }
        let waiting = self.users.iter_mut();
        let share = waiting
            .filter(|share| !share.waiting.is_empty() && share.held < limiter.most_per_user)
            .min_by_key(|share| (share.held, share.last))?;
        let waiting = share.waiting.pop_front()?;
        self.next_id += 1;
        self.free -= 1;
        share.held += 1;
        share.last = self.next_id;
        let permit = Permit {
            limiter: Arc::clone(limiter),
            user: share.user.clone(),
            id: self.next_id,
        };
        Some((waiting, permit))
    }

    /// Asks for the return of an idle permit for each one that somebody waits for.
    fn ask_back(&mut self, most_per_user: usize) {
        for index in 0..self.users.len() {
            while self.users[index].waiting.len() > self.users[index].coming {
                let Some(victim) = self.victim(index, most_per_user) else {
                    break;
                };
                let user = self.users[index].user.clone();
                let mut idle = self.users[victim].idle.iter_mut();
                let Some(idle) = idle.find(|idle| idle.wanted_by.is_none()) else {
                    break;
                };
                idle.wanted_by = Some(user);
                idle.waker.wake_by_ref();
                self.users[index].coming += 1;
            }
        }
    }

    /// Who gives up an idle permit for the user at `index`: the one who keeps most, or else this
    /// user. Somebody who has a permit already gets no other one from a user who would then have
    /// fewer, or the two would end each other's commands in turns.
    fn victim(&self, index: usize, most_per_user: usize) -> Option<usize> {
        let has = self.users[index].held + self.users[index].coming;
        let enough = has + usize::from(has > 0);
        let candidates = self.users.iter().enumerate().filter(|&(other, share)| {
            let may_lose = other == index || (share.keeps() > enough && has < most_per_user);
            may_lose && share.idle.iter().any(|idle| idle.wanted_by.is_none())
        });
        let victim = candidates.max_by_key(|(_, share)| (share.keeps(), Reverse(share.last)));
        victim.map(|(victim, _)| victim)
    }
}

impl Share {
    fn new(user: User) -> Self {
        Self {
            user,
            held: 0,
            last: 0,
            waiting: VecDeque::new(),
            idle: VecDeque::new(),
            coming: 0,
        }
    }

    /// The number of permits that are not asked back.
    fn keeps(&self) -> usize {
        let wanted = |idle: &&IdlePermit| idle.wanted_by.is_some();
        self.held - self.idle.iter().filter(wanted).count()
    }

    fn is_over(&self) -> bool {
        self.held == 0 && self.waiting.is_empty() && self.coming == 0
    }
}

impl Permit {
    /// Marks the permit as idle. Ready once it has to be returned.
    pub(crate) fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shares = self.limiter.shares.lock();
        let idle = &mut shares.of(&self.user).idle;
        match idle.iter_mut().find(|idle| idle.id == self.id) {
            Some(idle) if idle.wanted_by.is_some() => return Poll::Ready(()),
            Some(idle) => idle.waker.clone_from(cx.waker()),
            None => {
                idle.push_back(IdlePermit {
                    id: self.id,
                    waker: cx.waker().clone(),
                    wanted_by: None,
                });
                // If it is wanted at once, the waker is called.
                self.limiter.settle(shares);
            }
        }
        Poll::Pending
    }

    /// Marks the permit as in use again. Returns false if it has to be returned instead.
    pub(crate) fn set_busy(&self) -> bool {
        let mut shares = self.limiter.shares.lock();
        let idle = &mut shares.of(&self.user).idle;
        let is_wanted = |idle: &IdlePermit| idle.id == self.id && idle.wanted_by.is_some();
        if idle.iter().any(is_wanted) {
            return false;
        }
        idle.retain(|idle| idle.id != self.id);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shares = self.limiter.shares.lock();
        shares.free += 1;
        let share = shares.of(&self.user);
        share.held -= 1;
        let returned = share.idle.iter().position(|idle| idle.id == self.id);
        let returned = returned.and_then(|index| share.idle.remove(index));
        if let Some(user) = returned.and_then(|idle| idle.wanted_by) {
            shares.of(&user).coming -= 1;
        }
        self.limiter.settle(shares);
    }
}

#[cfg(test)]
mod tests;
