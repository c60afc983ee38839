use std::{future::poll_fn, time::Duration};

use tokio::time::{sleep, timeout};

use super::*;

#[cfg(unix)]
fn user(number: u32) -> User {
    Some(UserId::Uid(number))
}

#[cfg(windows)]
fn user(number: u32) -> User {
    Some(UserId::Sid(format!("S-1-5-21-{number}")))
}

fn limiter(permits: usize) -> Arc<FairLimiter> {
    Arc::new(FairLimiter::new(permits, permits))
}

async fn acquire(limiter: &Arc<FairLimiter>, user: &User) -> Permit {
    match limiter.acquire(user.clone()) {
        Ok(permit) => permit,
        Err(waiting) => waiting.await.unwrap(),
    }
}

/// Holds an idle permit until it is wanted.
async fn idle(permit: Permit) {
    poll_fn(|cx| permit.poll_wanted(cx)).await;
}

#[track_caller]
fn taken(acquired: Result<Permit, oneshot::Receiver<Permit>>) -> Permit {
    acquired.expect("it has to wait")
}

#[track_caller]
fn waits(acquired: Result<Permit, oneshot::Receiver<Permit>>) -> oneshot::Receiver<Permit> {
    acquired.expect_err("it does not wait")
}

#[test]
fn permits_are_taken_at_once_while_there_are_some() {
    let limiter = limiter(2);
    let first = taken(limiter.acquire(user(1)));
    let _second = taken(limiter.acquire(user(1)));
    let mut third = waits(limiter.acquire(user(2)));
    assert!(third.try_recv().is_err());
    drop(first);
    assert!(third.try_recv().is_ok());
    assert_eq!(limiter.shares.lock().free, 1);
}

#[test]
fn requests_of_one_user_wait_in_order() {
    let limiter = limiter(1);
    let mut permit = taken(limiter.acquire(user(1)));
    let mut waiting: Vec<_> = (0..3).map(|_| waits(limiter.acquire(user(1)))).collect();
    while !waiting.is_empty() {
        drop(permit);
        permit = waiting.remove(0).try_recv().unwrap();
        assert!(waiting.iter_mut().all(|later| later.try_recv().is_err()));
    }
}

#[test]
fn a_user_who_runs_nothing_is_next_whatever_another_has_queued() {
    let limiter = limiter(2);
    let mut busy = vec![
        taken(limiter.acquire(user(1))),
        taken(limiter.acquire(user(1))),
    ];
    let mut queue: Vec<_> = (0..250).map(|_| waits(limiter.acquire(user(1)))).collect();
    for _ in 0..10 {
        let mut other = waits(limiter.acquire(user(2)));
        busy.remove(0);
        let permit = other.try_recv().unwrap();
        drop(permit);
        busy.push(queue.remove(0).try_recv().unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn users_take_turns() {
    let limiter = limiter(1);
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    let first = taken(limiter.acquire(user(0)));
    for number in [1, 1, 1, 2, 2, 3] {
        let (limiter, done) = (Arc::clone(&limiter), done.clone());
        let waiting = waits(limiter.acquire(user(number)));
        tokio::spawn(async move {
            let _permit = waiting.await.unwrap();
            done.send(number).unwrap();
            sleep(Duration::from_secs(1)).await;
        });
    }
    drop(first);
    let mut users = Vec::new();
    for _ in 0..6 {
        users.push(order.recv().await.unwrap());
    }
    assert_eq!(users, [1, 2, 3, 1, 2, 1]);
}

#[test]
fn one_user_can_be_kept_from_taking_everything() {
    let limiter = Arc::new(FairLimiter::new(4, 3));
    let mut held: Vec<_> = (0..3).map(|_| taken(limiter.acquire(user(1)))).collect();
    let mut fourth = waits(limiter.acquire(user(1)));
    let _other = taken(limiter.acquire(user(2)));
    assert!(fourth.try_recv().is_err());
    held.pop();
    assert!(fourth.try_recv().is_ok());
}

#[test]
fn whoever_gives_up_waiting_is_forgotten() {
    let limiter = limiter(1);
    let permit = taken(limiter.acquire(user(1)));
    for number in 0..100 {
        drop(waits(limiter.acquire(user(number % 3))));
    }
    let mut last = waits(limiter.acquire(user(9)));
    assert_eq!(limiter.shares.lock().users.len(), 2);
    drop(permit);
    // One that was given and not taken is not lost.
    drop(last.try_recv().unwrap());
    assert!(limiter.shares.lock().users.is_empty());
    let held = taken(limiter.acquire(user(1)));
    let given = waits(limiter.acquire(user(2)));
    drop(held);
    drop(given);
    taken(limiter.acquire(user(3)));
    assert!(limiter.shares.lock().users.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_permit_is_returned_when_somebody_waits_for_it() {
    let limiter = limiter(2);
    let busy = taken(limiter.acquire(user(1)));
    let held = tokio::spawn(idle(taken(limiter.acquire(user(1)))));
    sleep(Duration::from_secs(1)).await;
    assert!(!held.is_finished());
    let _permit = timeout(Duration::from_secs(1), acquire(&limiter, &user(1))).await;
    held.await.unwrap();
    // A permit in use is not asked back.
    assert!(busy.set_busy());
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_becomes_idle_while_somebody_waits_is_returned() {
    let limiter = limiter(1);
    let permit = taken(limiter.acquire(user(1)));
    let waiting = waits(limiter.acquire(user(1)));
    idle(permit).await;
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_wanted_can_not_be_used_again() {
    let limiter = limiter(1);
    let permit = taken(limiter.acquire(user(1)));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(permit.poll_wanted(cx).is_pending());
    assert!(permit.set_busy());
    assert!(permit.poll_wanted(cx).is_pending());
    let waiting = waits(limiter.acquire(user(1)));
    assert!(!permit.set_busy());
    drop(permit);
    waiting.await.unwrap();
}

/// The longest idle one of the user who has most, until that one has no more than who waits.
#[tokio::test(start_paused = true)]
async fn whoever_has_most_gives_up_idle_permits() {
    let limiter = limiter(4);
    let few = tokio::spawn(idle(taken(limiter.acquire(user(2)))));
    let mut most = Vec::new();
    for _ in 0..3 {
        most.push(tokio::spawn(idle(taken(limiter.acquire(user(1))))));
        // They become idle in this order.
        sleep(Duration::from_secs(1)).await;
    }
    let first = acquire(&limiter, &user(3)).await;
    assert!(most.remove(0).is_finished());
    assert_eq!(limiter.shares.lock().of(&user(1)).held, 2);
    // One more would leave user 1 with less than user 3.
    let mut second = waits(limiter.acquire(user(3)));
    sleep(Duration::from_secs(1)).await;
    assert!(second.try_recv().is_err());
    assert!(!few.is_finished() && most.iter().all(|held| !held.is_finished()));
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_user_with_nothing_gets_the_idle_permit_of_a_user_with_one() {
    let limiter = limiter(1);
    let held = tokio::spawn(idle(taken(limiter.acquire(user(1)))));
    sleep(Duration::from_secs(1)).await;
    acquire(&limiter, &user(2)).await;
    held.await.unwrap();
}

/// Otherwise they would end each other's commands in turns.
#[tokio::test(start_paused = true)]
async fn a_user_who_has_more_takes_nothing_from_one_who_has_less() {
    let limiter = limiter(3);
    let _busy = [
        taken(limiter.acquire(user(1))),
        taken(limiter.acquire(user(1))),
    ];
    let little = tokio::spawn(idle(taken(limiter.acquire(user(2)))));
    sleep(Duration::from_secs(1)).await;
    let mut waiting = waits(limiter.acquire(user(1)));
    sleep(Duration::from_secs(1)).await;
    assert!(waiting.try_recv().is_err());
    assert!(!little.is_finished());
}

#[tokio::test(start_paused = true)]
async fn at_its_own_limit_a_user_gives_up_its_own_idle_permit() {
    let limiter = Arc::new(FairLimiter::new(8, 2));
    let own = tokio::spawn(idle(taken(limiter.acquire(user(1)))));
    let _busy = taken(limiter.acquire(user(1)));
    let others: Vec<_> = (0..2)
        .map(|_| tokio::spawn(idle(taken(limiter.acquire(user(2))))))
        .collect();
    sleep(Duration::from_secs(1)).await;
    acquire(&limiter, &user(1)).await;
    own.await.unwrap();
    assert!(others.iter().all(|other| !other.is_finished()));
}
