//! Who is read and who is closed when the budget is spent.

use std::task::Waker;

use tokio::time::advance;

use super::*;
use crate::peer::Peer;

/// When the budget is spent.
const MOST: usize = 100 * GRAIN;

/// A client that holds messages and does what its task would do.
struct TestClient {
    budget: Arc<ClientBudget>,
    held: HeldBytes,
}

impl TestClient {
    /// Connects a client of the user `user` that holds so many KiB.
    fn new(budget: &Arc<Budget>, id: u64, user: u32, kib: usize) -> Self {
        #[cfg(windows)]
        let user = UserId::Sid(format!("S-1-5-21-{user}"));
        #[cfg(not(windows))]
        let user = UserId::Uid(user);
        let mut identity = Identity::for_peer(Peer::new(1, user));
        identity.id = id;
        let budget = ClientBudget::new(budget, &Arc::new(identity));
        let mut held = budget.hold();
        held.resize(kib * GRAIN);
        Self { budget, held }
    }

    /// Returns whether the client is to be closed, since its replies can't be sent.
    fn is_chosen(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.budget.poll_unread(&mut cx).is_ready()
    }

    fn may_read(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.budget.poll_may_hold_more(&mut cx).is_ready()
    }
}

fn budget() -> Arc<Budget> {
    let budget = Budget::new(Some(MOST + MOST / 3));
    assert_eq!(budget.most, MOST);
    Arc::new(budget)
}

fn held(budget: &Budget) -> usize {
    budget.held.load(Ordering::SeqCst)
}

/// Which of the clients, all of which do not read, are closed.
async fn chosen(clients: &mut [TestClient]) -> Vec<bool> {
    let budget = Arc::clone(&clients[0].budget.budget);
    for client in &mut *clients {
        assert!(!client.is_chosen());
    }
    advance(PATIENCE).await;
    budget.close_excess();
    clients.iter_mut().map(TestClient::is_chosen).collect()
}

#[tokio::test(start_paused = true)]
async fn the_user_who_holds_most_loses_first_and_of_its_clients_the_largest() {
    let budget = budget();
    let holding = [(7, 40), (8, 20), (8, 30), (9, 10)];
    let clients = holding.into_iter().enumerate();
    let mut clients: Vec<_> = clients
        .map(|(id, (user, kib))| TestClient::new(&budget, id as u64, user, kib))
        .collect();
    // 100 KiB: the largest client of user 8, who holds 50, although user 7 has a larger one.
    assert_eq!(chosen(&mut clients).await, [false, false, true, false]);
    // It counts as closed, and nobody else is chosen meanwhile.
    budget.close_excess();
    assert!(!clients[0].is_chosen());
    clients.remove(2);
    assert_eq!(held(&budget), 70 * GRAIN);

    // 125 KiB: user 9 now holds most, and then user 7.
    clients.push(TestClient::new(&budget, 4, 9, 55));
    assert_eq!(chosen(&mut clients).await, [false, false, false, true]);
    clients[1].held.resize(39 * GRAIN);
    clients[2].held.resize(39 * GRAIN);
    budget.close_excess();
    assert!(clients[0].is_chosen());
    drop(clients);
    assert_eq!(held(&budget), 0);
    assert!(budget.clients().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_clients_that_have_not_read_in_time_are_chosen() {
    let budget = budget();
    let mut in_handler = TestClient::new(&budget, 0, 7, 90);
    let mut reading = TestClient::new(&budget, 1, 7, 20);
    let mut unread = TestClient::new(&budget, 2, 7, 10);
    assert!(!reading.is_chosen() && !unread.is_chosen());
    advance(PATIENCE).await;
    reading.budget.read();
    assert!(!reading.is_chosen());
    budget.close_excess();
    assert!(unread.is_chosen());
    // The bytes that are left do not concern the others, until one of them does not read.
    drop(unread);
    budget.close_excess();
    assert!(!reading.is_chosen());
    advance(PATIENCE).await;
    budget.close_excess();
    assert!(reading.is_chosen());
    assert!(!in_handler.is_chosen());
    // What was sent after all is not lost.
    reading.budget.read();
    assert!(!reading.is_chosen());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_holds_little_is_always_read() {
    let budget = budget();
    let mut one = TestClient::new(&budget, 0, 7, 99);
    let mut other = TestClient::new(&budget, 1, 7, 0);
    assert!(one.may_read() && other.may_read());
    // The last quarter is 33 KiB, for two clients.
    other.held.resize(16 * GRAIN);
    assert!(!one.may_read() && other.may_read());
    other.held.resize(17 * GRAIN);
    assert!(!other.may_read());
    one.held.resize(0);
    assert!(one.may_read() && other.may_read());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_is_woken_when_bytes_are_free_and_not_before() {
    let budget = budget();
    let kept = Arc::clone(&budget);
    let _keeper = tokio::spawn(async move { match kept.keep().await {} });
    let mut holder = TestClient::new(&budget, 0, 7, 100);
    let waiting = TestClient::new(&budget, 1, 7, 30);
    let waiting = tokio::spawn(async move {
        let may_read = |cx: &mut Context<'_>| waiting.budget.poll_may_hold_more(cx);
        std::future::poll_fn(may_read).await;
    });
    sleep(10 * INTERVAL).await;
    assert!(!waiting.is_finished());
    holder.held.resize(10 * GRAIN);
    waiting.await.unwrap();
}

#[test]
fn small_changes_are_counted_together_and_a_change_to_zero_at_once() {
    let budget = budget();
    let mut client = TestClient::new(&budget, 0, 7, 0);
    client.held.resize(GRAIN - 1);
    assert_eq!(held(&budget), 0);
    let mut rest = client.budget.hold();
    rest.resize(GRAIN);
    assert_eq!(held(&budget), 2 * GRAIN - 1);
    let half = rest.split(GRAIN / 2);
    assert_eq!((half.bytes(), rest.bytes()), (GRAIN / 2, GRAIN / 2));
    rest.absorb(half);
    drop(client);
    assert_eq!(held(&budget), 2 * GRAIN - 1);
    drop(rest);
    assert_eq!(held(&budget), 0);
}
