//! Clients that hold a place although the system can't identify them yet.
//!
//! On Windows some clients are identified by their first message. Until then they count among
//! nobody's connections, so one user could take all places with clients that send nothing. When
//! places run short, those that have been unidentified the longest lose theirs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::task::AbortHandle;
use tracing::Span;

use crate::connection::Identity;

/// Whether it is decided if a client keeps its place. Decided by its task, when it identifies the
/// client, or by the accept loop, which then aborts the task.
#[derive(Clone, Default)]
pub(super) struct Decision(Arc<AtomicBool>);

impl Decision {
    /// Returns whether the decision is the caller's.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The unidentified clients, those that have waited the longest first.
#[derive(Default)]
pub(super) struct UnidentifiedClients(Vec<UnidentifiedClient>);

pub(super) struct UnidentifiedClient {
    pub(super) identity: Arc<Identity>,
    pub(super) decision: Decision,
    pub(super) task: AbortHandle,
    pub(super) span: Span,
}

impl UnidentifiedClients {
    pub(super) fn add(&mut self, client: UnidentifiedClient) {
        self.0
            .retain(|client| !client.decision.is_taken() && !client.task.is_finished());
        self.0.push(client);
    }

    /// Aborts the task of the client that has waited the longest, and returns that client.
    pub(super) fn give_up_one(&mut self) -> Option<UnidentifiedClient> {
        while !self.0.is_empty() {
            let client = self.0.remove(0);
            if !client.task.is_finished() && client.decision.take() {
                client.task.abort();
                return Some(client);
            }
        }
        None
    }
}
