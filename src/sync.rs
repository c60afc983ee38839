//! A mutex, and the waker of a waiting task.

use std::{
    sync::{self, MutexGuard, PoisonError},
    task::Waker,
};

/// [`std::sync::Mutex`] without poisoning. User code may panic, but the data that this crate
/// protects is consistent whenever user code runs.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waker of the task that was registered last, unless it has been woken since.
///
/// A waker is user code, so it is cloned, called and dropped outside the lock.
#[derive(Debug, Default)]
pub(crate) struct TaskWaker(Mutex<Option<Waker>>);

impl TaskWaker {
    /// Registers a task. Call this before checking whether the task has to wait.
    pub(crate) fn register(&self, waker: &Waker) {
        let is_registered = |old: &Waker| old.will_wake(waker);
        if !self.0.lock().as_ref().is_some_and(is_registered) {
            let new = waker.clone();
            let _old = self.0.lock().replace(new);
        }
    }

    /// Wakes the registered task, if there is one.
    pub(crate) fn wake(&self) {
        let registered = self.0.lock().take();
        if let Some(waker) = registered {
            waker.wake();
        }
    }
}
