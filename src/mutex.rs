//! A mutex that a panic does not poison.

use std::sync::{self, MutexGuard, PoisonError};

/// [`std::sync::Mutex`] without poisoning. What it protects in this crate is consistent whenever the user's code, which
/// may panic, runs.
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
