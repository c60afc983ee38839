//! A mutex without poisoning.

use std::sync::{self, MutexGuard, PoisonError};

/// [`std::sync::Mutex`] without poisoning: a panic while it is locked leaves what the programs
/// protect as good as before, or ends what it belongs to.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Creates an unlocked mutex.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Locks it, and blocks until it can.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
