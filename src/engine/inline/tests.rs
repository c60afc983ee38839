//! Tests of tasks whose completions are delivered by hand.

use std::{
    pin::pin,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{JoinHandle, coop::consume_budget, yield_now},
    time::{Instant, sleep},
};

use super::*;

/// A runtime that runs tasks only while the test calls it, and one inline task in it that has been
/// polled once.
struct Fixture<T> {
    runtime: Runtime,
    tasks: InlineTasks,
    task: JoinHandle<()>,
    output: oneshot::Receiver<T>,
}

impl<T: Send + 'static> Fixture<T> {
    fn start(future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let tasks = runtime.block_on(async { InlineTasks::new() });
        let (ended, output) = oneshot::channel();
        let task = runtime.spawn(tasks.task(async move {
            _ = ended.send(future.await);
        }));
        let fixture = Self {
            runtime,
            tasks,
            task,
            output,
        };
        fixture.run_workers();
        fixture
    }

    /// Polls each task that is ready.
    fn run_workers(&self) {
        self.runtime.block_on(async {
            for _ in 0..10 {
                yield_now().await;
            }
        });
    }

    fn end(mut self) -> T {
        self.runtime.block_on(self.task).unwrap();
        self.output.try_recv().unwrap()
    }
}

/// An operation that is started over and over, and completed by the test.
#[derive(Default)]
struct Operation {
    state: Mutex<(usize, Option<Waker>)>,
}

impl Operation {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits for a completion.
    async fn done(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.0 > 0 {
                state.0 -= 1;
                return Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Completes it without `complete`, as the runtime's own resources do.
    fn wake(&self) {
        let mut state = self.state.lock();
        state.0 += 1;
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Completes it on this thread.
    fn complete(&self) {
        complete(|| self.wake());
    }

    /// Completes it on another thread, which is returned.
    fn complete_elsewhere(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let this = Arc::clone(self);
        thread::spawn(move || this.complete())
    }
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Returns from the poll without arranging for another one: something else has to.
async fn be_pending() {
    let mut polled = false;
    poll_fn(|_| match mem::replace(&mut polled, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn here() -> thread::ThreadId {
    thread::current().id()
}

#[test]
fn a_completion_polls_its_task_on_its_own_thread() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        here()
    });
    let thread = operation.complete_elsewhere();
    let id = thread.thread().id();
    thread.join().unwrap();
    assert_eq!(fixture.end(), id);
}

#[test]
fn any_other_wake_up_goes_through_the_runtime() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        here()
    });
    let waking = Arc::clone(&operation);
    thread::spawn(move || waking.wake()).join().unwrap();
    assert_eq!(fixture.end(), here());
}

#[test]
fn a_task_that_yields_continues_on_a_worker() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        let first = here();
        yield_now().await;
        (first, here())
    });
    let thread = operation.complete_elsewhere();
    let id = thread.thread().id();
    thread.join().unwrap();
    assert_eq!(fixture.end(), (id, here()));
}

#[test]
fn a_task_that_always_finds_something_ready_leaves_the_thread() {
    const ENOUGH: usize = 1000;
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        while counting.fetch_add(1, Ordering::Relaxed) < ENOUGH {
            consume_budget().await;
        }
    });
    operation.complete();
    let counted = count.load(Ordering::Relaxed);
    assert!((1..ENOUGH).contains(&counted), "{counted}");
    fixture.end();
}

#[test]
fn a_timer_created_inline_ends() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        let began = Instant::now();
        sleep(Duration::from_secs(60)).await;
        began.elapsed()
    });
    operation.complete_elsewhere().join().unwrap();
    assert_eq!(fixture.end().as_secs(), 60);
}

#[test]
fn a_completion_while_its_task_is_polled_is_not_lost() {
    for inline in [false, true] {
        let operation = Operation::new();
        let awaited = Arc::clone(&operation);
        let fixture = Fixture::start(async move {
            awaited.done().await;
            let mut second = pin!(awaited.done());
            assert!(poll_once(second.as_mut()).await.is_pending());
            awaited.complete_elsewhere().join().unwrap();
            be_pending().await;
            second.await;
        });
        match inline {
            true => operation.complete(),
            false => operation.wake(),
        }
        fixture.end();
    }
}

#[test]
fn a_wake_up_by_the_runtime_during_an_inline_poll_is_not_lost() {
    // Whether the runtime gets to know of it before the inline poll or during it.
    for before in [false, true] {
        let (first, second) = (Operation::new(), Operation::new());
        let (awaited, awaited_too) = (Arc::clone(&first), Arc::clone(&second));
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let fixture = Fixture::start(async move {
            let mut second = pin!(awaited_too.done());
            let mut early = poll_once(second.as_mut()).await;
            awaited.done().await;
            begun.send(()).unwrap();
            goes_on.recv().unwrap();
            be_pending().await;
            if early.is_pending() {
                early = poll_once(second).await;
            }
            assert!(early.is_ready());
        });
        if before {
            second.wake();
        }
        let thread = first.complete_elsewhere();
        begins.recv().unwrap();
        if !before {
            second.wake();
        }
        fixture.run_workers();
        go_on.send(()).unwrap();
        thread.join().unwrap();
        fixture.end();
    }
}

#[test]
fn a_task_woken_by_another_one_is_not_polled_inside_it() {
    let (first, second) = (Operation::new(), Operation::new());
    let woken_by_first = Arc::clone(&second);
    let second_ran = Arc::new(AtomicBool::new(false));
    let observed = Arc::clone(&second_ran);
    let awaited = Arc::clone(&first);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        woken_by_first.wake();
        observed.load(Ordering::Relaxed)
    });
    let running = Arc::clone(&second_ran);
    let other = fixture.runtime.spawn(fixture.tasks.task(async move {
        second.done().await;
        running.store(true, Ordering::Relaxed);
    }));
    fixture.run_workers();
    first.complete();
    assert!(
        !second_ran.load(Ordering::Relaxed),
        "a worker has to poll it"
    );
    fixture.runtime.block_on(other).unwrap();
    assert!(!fixture.end());
}

#[test]
fn both_tasks_woken_by_a_completion_are_polled() {
    let (first, second) = (Operation::new(), Operation::new());
    let (awaited, awaited_too) = (Arc::clone(&first), Arc::clone(&second));
    let fixture = Fixture::start(async move { awaited.done().await });
    let other = fixture.tasks.task(async move { awaited_too.done().await });
    let other = fixture.runtime.spawn(other);
    fixture.run_workers();
    complete(|| {
        first.wake();
        second.wake();
    });
    fixture.runtime.block_on(other).unwrap();
    fixture.end();
}

#[test]
fn a_panic_inline_is_the_panic_of_its_task() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let fixture = Fixture::start(async move {
        awaited.done().await;
        panic!("as asked for");
    });
    operation.complete();
    let error = fixture.runtime.block_on(fixture.task).unwrap_err();
    let panic = error.into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"as asked for"));
}

#[test]
fn an_idle_task_is_dropped_when_it_is_aborted() {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let dropped = SetWhenDropped::default();
    let observed = dropped.0.clone();
    let fixture = Fixture::start(async move {
        let _dropped = dropped;
        awaited.done().await;
    });
    fixture.task.abort();
    let error = fixture.runtime.block_on(fixture.task).unwrap_err();
    assert!(error.is_cancelled());
    assert!(observed.load(Ordering::Relaxed));
    operation.complete();
    fixture.runtime.block_on(fixture.tasks.ended());
}

#[test]
fn a_task_aborted_while_it_is_polled_inline_is_dropped_after_that() {
    // Whether the poll that was interrupted would have been the last one.
    for last in [false, true] {
        let (fixture, operation, held) = held_inline(last);
        let thread = operation.complete_elsewhere();
        held.begins.recv().unwrap();
        fixture.task.abort();
        let error = fixture.runtime.block_on(fixture.task).unwrap_err();
        assert!(error.is_cancelled());
        let mut ended = Box::pin(fixture.tasks.ended());
        let polled = fixture.runtime.block_on(poll_once(ended.as_mut()));
        assert!(polled.is_pending(), "its code still runs");
        assert!(!held.dropped.load(Ordering::Relaxed));
        held.go_on.send(()).unwrap();
        fixture.runtime.block_on(ended);
        assert!(held.dropped.load(Ordering::Relaxed));
        thread.join().unwrap();
    }
}

#[test]
fn the_runtime_may_end_while_a_task_is_polled_inline() {
    for last in [false, true] {
        let (fixture, operation, held) = held_inline(last);
        let thread = operation.complete_elsewhere();
        held.begins.recv().unwrap();
        drop(fixture.runtime);
        held.go_on.send(()).unwrap();
        thread.join().unwrap();
        assert!(held.dropped.load(Ordering::Relaxed));
    }
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    const THREADS: usize = 3;
    const EACH: usize = if cfg!(miri) { 20 } else { 20_000 };
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).build().unwrap();
    let tasks = runtime.block_on(async { InlineTasks::new() });
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let task = runtime.spawn(tasks.task(async move {
        for _ in 0..THREADS * EACH {
            awaited.done().await;
        }
    }));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for number in 0..EACH {
                    match number % 4 {
                        0 => operation.wake(),
                        _ => operation.complete(),
                    }
                }
            });
        }
    });
    runtime.block_on(task).unwrap();
    runtime.block_on(tasks.ended());
}

/// What a test knows of a task that blocks inside an inline poll.
struct Held {
    begins: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
    dropped: Arc<AtomicBool>,
}

/// A task that blocks once the operation has completed, and then ends if that is its `last` poll.
fn held_inline(last: bool) -> (Fixture<()>, Arc<Operation>, Held) {
    let operation = Operation::new();
    let awaited = Arc::clone(&operation);
    let (begun, begins) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let set_when_dropped = SetWhenDropped::default();
    let dropped = set_when_dropped.0.clone();
    let fixture = Fixture::start(async move {
        let _dropped = set_when_dropped;
        awaited.done().await;
        begun.send(()).unwrap();
        goes_on.recv().unwrap();
        if !last {
            awaited.done().await;
        }
    });
    let held = Held {
        begins,
        go_on,
        dropped,
    };
    (fixture, operation, held)
}

#[derive(Default)]
struct SetWhenDropped(Arc<AtomicBool>);

impl Drop for SetWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
