//! The tasks of one server: one for each connection.

use std::future::Future;

use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::engine::inline::InlineTasks;

/// The tasks of one server. Dropping this aborts all of them.
pub(crate) struct Tasks {
    tasks: JoinSet<()>,
    inline: Option<InlineTasks>,
}

impl Tasks {
    /// Creates an empty set. Called inside the runtime that runs the tasks. With `inline`, a thread
    /// that completes I/O of a task also polls it.
    pub(crate) fn new(inline: bool) -> Self {
        Self {
            tasks: JoinSet::new(),
            inline: inline.then(InlineTasks::new),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn spawn(
        &mut self,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        match &self.inline {
            Some(inline) => self.tasks.spawn(inline.task(future)),
            None => self.tasks.spawn(future),
        }
    }

    /// Waits until a task has completed. Returns `None` if there is none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn join_next(&mut self) -> Option<Result<(), JoinError>> {
        self.tasks.join_next().await
    }

    pub(crate) fn abort_all(&mut self) {
        self.tasks.abort_all();
    }

    /// Waits until every future is dropped. Called once all tasks have completed.
    pub(crate) async fn ended(self) {
        if let Some(inline) = self.inline {
            inline.ended().await;
        }
    }
}
