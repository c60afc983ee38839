//! One call of a shared client, from waiting for a slot to the reply.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::{
    driver::Driver,
    pool::{Answer, Pool},
};
use crate::{
    connection::check,
    error::{ConnectError, SharedCallError, SharedCallErrorKind},
    timer::timeout,
};

/// Makes a call. It waits for a slot, unless there is one already.
pub(super) async fn call(
    pool: &Arc<Pool>,
    message: Bytes,
    repeat: bool,
    slot: Option<OwnedSemaphorePermit>,
) -> Answer {
    if let Err(error) = check(&message, pool.max_message_size) {
        let failure = SharedCallErrorKind::Request(Arc::new(error));
        return Err(SharedCallError::NotExecuted(failure));
    }
    let Ok(runtime) = Handle::try_current() else {
        let failure = SharedCallErrorKind::Connect(Arc::new(ConnectError::NoRuntime));
        return Err(SharedCallError::NotExecuted(failure));
    };
    let call_timeout = pool.options.call_timeout;
    let deadline = call_timeout.and_then(|after| Instant::now().checked_add(after));
    let mut submitted = None;
    let exchange = async {
        let slot = match slot {
            Some(slot) => slot,
            None => pool.reserve().await?,
        };
        let (request, answer) = pool.submit(message, repeat, slot, deadline);
        let call = submitted.insert(SubmittedCall {
            pool,
            request,
            answer,
        });
        Driver::start(pool, &runtime, None);
        // There is no answer if the driver panicked.
        let aborted = Err(SharedCallError::Unanswered(SharedCallErrorKind::Aborted));
        (&mut call.answer).await.unwrap_or(aborted)
    };
    let answered = {
        let mut exchange = pin!(exchange);
        timeout(call_timeout, &mut exchange).await
    };
    let failure = match answered {
        Ok(answer) => return answer,
        Err(after) => SharedCallErrorKind::TimedOut { after },
    };
    match submitted {
        Some(call) => call.give_up(failure),
        None => Err(SharedCallError::NotExecuted(failure)),
    }
}

/// The caller's side of a request. Dropping it gives the call up.
struct SubmittedCall<'a> {
    pool: &'a Pool,
    request: u64,
    answer: oneshot::Receiver<Answer>,
}

impl SubmittedCall<'_> {
    /// Returns the answer if there is one by now, and `failure` otherwise.
    fn give_up(mut self, failure: SharedCallErrorKind) -> Answer {
        if let Some(request) = self.pool.withdraw(self.request) {
            request.fail(failure.clone());
        }
        let unanswered = Err(SharedCallError::Unanswered(failure));
        self.answer.try_recv().unwrap_or(unanswered)
    }
}

impl Drop for SubmittedCall<'_> {
    fn drop(&mut self) {
        if !self.answer.is_terminated() {
            // First, so that a request that is in flight does not wait again.
            self.answer.close();
            drop(self.pool.withdraw(self.request));
        }
    }
}
