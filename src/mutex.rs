//! A mutex without poisoning.

use std::sync::{self, MutexGuard, PoisonError};

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
