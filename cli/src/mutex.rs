//! A mutex without poisoning.

use std::sync::{self, MutexGuard, PoisonError};

/// [`std::sync::Mutex`] without poisoning. A panic while it is locked leaves the data consistent, or
/// ends the only task that uses it.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Creates an unlocked mutex.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Locks the mutex, and blocks the thread until it is free.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
