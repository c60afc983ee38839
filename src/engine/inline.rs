//! Tasks that are polled on the thread that completes their I/O.
//!
//! Usually the thread that handles a completion wakes a task, which a worker of the runtime then
//! polls, so that a message wakes two threads. An [`InlineTask`] that is woken inside [`complete`]
//! is polled on that thread instead. Every other wake-up goes through the runtime.
//!
//! - **One thread polls at a time.** [`PolledFuture::future`] records which one has the future. If
//!   another thread finds it taken, the task is woken afterwards, so no wake-up is lost.
//! - **No thread is blocked for long.** A completion polls one task once, within Tokio's coop
//!   budget. A task that wakes itself, for example because it yields, continues on a worker.
//! - **No task is polled inside a waker**, because the caller of the waker may hold a lock. No poll
//!   is nested in another one.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Future, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread,
};

use tokio::{runtime::Handle, sync::mpsc};

use crate::sync::Mutex;

/// The inline tasks of one server.
pub(crate) struct InlineTasks {
    runtime: Handle,
    /// Cloned into each future and dropped with it.
    alive: mpsc::Sender<Infallible>,
    ended: mpsc::Receiver<Infallible>,
}

impl InlineTasks {
    /// Creates an empty set. Called inside the runtime that runs the tasks.
    pub(crate) fn new() -> Self {
        let (alive, ended) = mpsc::channel(1);
        Self {
            runtime: Handle::current(),
            alive,
            ended,
        }
    }

    /// Returns a task that runs `future`. The caller spawns it.
    pub(crate) fn task(&self, future: impl Future<Output = ()> + Send + 'static) -> InlineTask {
        let running = LiveFuture {
            future: Box::pin(future),
            _alive: self.alive.clone(),
        };
        InlineTask {
            shared: Arc::new(SharedFuture {
                runtime: self.runtime.clone(),
                state: Mutex::new(PolledFuture {
                    future: FutureState::Idle(running),
                    task: Waker::noop().clone(),
                }),
            }),
        }
    }

    /// Waits until all futures are dropped. When the runtime reports that an aborted task has
    /// ended, its future may still be in a poll on another thread.
    pub(crate) async fn ended(self) {
        let Self {
            alive, mut ended, ..
        } = self;
        drop(alive);
        ended.recv().await;
    }
}

/// A task that runs a future, both on workers of the runtime and on threads that complete its I/O.
pub(crate) struct InlineTask {
    shared: Arc<SharedFuture>,
}

struct SharedFuture {
    runtime: Handle,
    state: Mutex<PolledFuture>,
}

struct PolledFuture {
    future: FutureState,
    /// The waker of the task in the runtime.
    task: Waker,
}

enum FutureState {
    /// No thread polls the future.
    Idle(LiveFuture),
    /// The task polls the future, or did so when it ended.
    TakenByTask,
    /// A thread that completed its I/O polls the future. `woken` says that the task must be woken
    /// afterwards.
    Inline { woken: bool },
    /// The future ended in an inline poll, and the task has yet to end, or to resume its panic.
    Ended(thread::Result<()>),
    /// The task was dropped.
    Aborted,
}

/// A future, and the sender that `InlineTasks::ended` waits for. The future is dropped first.
struct LiveFuture {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    _alive: mpsc::Sender<Infallible>,
}

impl Future for InlineTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.state.lock();
        state.task.clone_from(cx.waker());
        let mut running = match mem::replace(&mut state.future, FutureState::TakenByTask) {
            FutureState::Idle(running) => running,
            FutureState::Ended(Ok(())) => return Poll::Ready(()),
            FutureState::Ended(Err(panic)) => {
                drop(state);
                resume_unwind(panic);
            }
            // The thread that polls the future wakes this task afterwards.
            FutureState::Inline { .. } => {
                state.future = FutureState::Inline { woken: true };
                return Poll::Pending;
            }
            FutureState::TakenByTask | FutureState::Aborted => panic!("polled after it has ended"),
        };
        drop(state);
        let polled = self.shared.poll(&mut running);
        if polled.is_pending() {
            self.shared.state.lock().future = FutureState::Idle(running);
        }
        polled
    }
}

impl Drop for InlineTask {
    fn drop(&mut self) {
        let future = mem::replace(&mut self.shared.state.lock().future, FutureState::Aborted);
        // Outside the lock. If a thread is polling the future, that thread drops it.
        drop(future);
    }
}

impl SharedFuture {
    fn poll(self: &Arc<Self>, running: &mut LiveFuture) -> Poll<()> {
        let waker = Waker::from(Arc::clone(self));
        running
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
    }

    /// Wakes the task of the runtime. While a thread polls the future inline, leaves that to this
    /// thread.
    fn wake_task(&self) {
        let mut state = self.state.lock();
        match &mut state.future {
            FutureState::Idle(_) | FutureState::TakenByTask => {
                let task = state.task.clone();
                drop(state);
                task.wake();
            }
            FutureState::Inline { woken } => *woken = true,
            FutureState::Ended(_) | FutureState::Aborted => {}
        }
    }

    /// Polls the future on this thread if no other thread does.
    fn poll_inline(self: Arc<Self>) {
        let mut state = self.state.lock();
        let inline = FutureState::Inline { woken: false };
        let mut running = match mem::replace(&mut state.future, inline) {
            FutureState::Idle(running) => running,
            future => {
                state.future = future;
                drop(state);
                return self.wake_task();
            }
        };
        drop(state);
        in_runtime_context(&self.runtime, || {
            let polled = catch_unwind(AssertUnwindSafe(|| self.poll(&mut running)));
            let ended = match polled {
                Ok(Poll::Pending) => {
                    let mut state = self.state.lock();
                    if let FutureState::Inline { woken } = state.future {
                        state.future = FutureState::Idle(running);
                        drop(state);
                        if woken {
                            self.wake_task();
                        }
                        return;
                    }
                    // Aborted.
                    drop(state);
                    None
                }
                Ok(Poll::Ready(())) => Some(Ok(())),
                Err(panic) => Some(Err(panic)),
            };
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(running)));
            let Some(ended) = ended else { return };
            let mut state = self.state.lock();
            if let FutureState::Inline { .. } = state.future {
                state.future = FutureState::Ended(dropped.and(ended));
                let task = state.task.clone();
                drop(state);
                task.wake();
            }
        });
    }
}

/// Calls `run` in the context of `runtime`, with a coop budget. `Handle::enter` would not set a
/// budget.
fn in_runtime_context(runtime: &Handle, run: impl FnOnce()) {
    // The Windows model may complete an operation on a thread of the runtime.
    #[cfg(pipe_model)]
    if Handle::try_current().is_ok() {
        return run();
    }
    let mut run = Some(run);
    runtime.block_on(poll_fn(|_| {
        if let Some(run) = run.take() {
            run();
        }
        Poll::Ready(())
    }));
}

impl Wake for SharedFuture {
    fn wake(self: Arc<Self>) {
        let refused = WOKEN.with_borrow_mut(|woken| match woken {
            Some(slot @ None) => {
                *slot = Some(self);
                None
            }
            _ => Some(self),
        });
        if let Some(this) = refused {
            this.wake_task();
        }
    }
}

thread_local! {
    /// The task that was woken, while [`complete`] runs.
    static WOKEN: RefCell<Option<Option<Arc<SharedFuture>>>> = const { RefCell::new(None) };
}

/// Calls `wake`, which wakes the tasks that wait for a completed operation. If this wakes an
/// [`InlineTask`], the first such task is polled before `complete` returns.
///
/// Must be called outside of any runtime, and outside all locks.
pub(crate) fn complete(wake: impl FnOnce()) {
    WOKEN.set(Some(None));
    wake();
    if let Some(Some(task)) = WOKEN.take() {
        task.poll_inline();
    }
}

#[cfg(test)]
mod tests;
