//! The methods of a module, as one client sees them.

use std::{future::Future, sync::Arc, time::Duration};

use jsonrpsee_core::{
    middleware::{Batch, BatchEntry, Notification, Request, ResponseFuture, RpcServiceT},
    server::{
        BatchResponseBuilder, ConnectionId, MethodCallback, MethodResponse, MethodSink, Methods,
        SubscriptionPermit, SubscriptionState,
    },
    traits::IdProvider,
};
use jsonrpsee_types::{
    ErrorCode, Params,
    error::{CALL_EXECUTION_FAILED_CODE, ErrorObject, reject_too_many_subscriptions},
};
use serde_json::value::RawValue;
use tokio::{sync::Semaphore, time::timeout};

/// What the requests of a connection pass through: an [`RpcService`], in middleware or not.
pub(super) trait Service:
    RpcServiceT<
        MethodResponse = MethodResponse,
        BatchResponse = MethodResponse,
        NotificationResponse = MethodResponse,
    > + Send
    + Sync
    + 'static
{
}

impl<S> Service for S where
    S: RpcServiceT<
            MethodResponse = MethodResponse,
            BatchResponse = MethodResponse,
            NotificationResponse = MethodResponse,
        > + Send
        + Sync
        + 'static
{
}

/// The service of one connection, which middleware wraps. It calls the methods.
#[derive(Clone, Debug)]
pub struct RpcService {
    client: Arc<Client>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) methods: Methods,
    pub(super) connection_id: ConnectionId,
    pub(super) max_response_size: usize,
    pub(super) sink: MethodSink,
    pub(super) method_timeout: Option<Duration>,
    pub(super) subscriptions: Subscriptions,
    pub(super) id_provider: Arc<dyn IdProvider>,
}

/// The subscriptions of a client. jsonrpsee's `BoundedSubscriptions` does not say whether there are
/// any.
#[derive(Clone, Debug)]
pub(super) struct Subscriptions {
    permits: Arc<Semaphore>,
    max: u32,
}

impl Subscriptions {
    pub(super) fn new(max: u32) -> Self {
        let permits = Semaphore::MAX_PERMITS.min(max as usize);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            max: permits as u32,
        }
    }

    fn acquire(&self) -> Option<SubscriptionPermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    pub(super) fn are_open(&self) -> bool {
        self.permits.available_permits() < self.max as usize
    }
}

impl RpcService {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client: Arc::new(client),
        }
    }
}

impl RpcServiceT for RpcService {
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let client = &*self.client;
        let Request {
            id,
            method,
            params,
            extensions,
            ..
        } = request;
        let params = Params::new(params.as_deref().map(RawValue::get));
        let limit = client.max_response_size;
        let error = match client.methods.method(&method) {
            Some(MethodCallback::Sync(call)) => {
                return ResponseFuture::ready(call(id, params, limit, extensions));
            }
            Some(MethodCallback::Unsubscription(call)) => {
                let connection_id = client.connection_id;
                return ResponseFuture::ready(call(id, params, connection_id, limit, extensions));
            }
            Some(MethodCallback::Async(call)) => {
                let (id, params) = (id.into_owned(), params.into_owned());
                let connection_id = client.connection_id;
                let Some(time) = client.method_timeout else {
                    let calling = call(id, params, connection_id, limit, extensions);
                    return ResponseFuture::future(calling);
                };
                let calling = call(id.clone(), params, connection_id, limit, extensions.clone());
                return ResponseFuture::future(Box::pin(async move {
                    let response = timeout(time, calling).await;
                    response.unwrap_or_else(|_| {
                        let error = took_too_long(time);
                        MethodResponse::error(id, error).with_extensions(extensions)
                    })
                }));
            }
            Some(MethodCallback::Subscription(subscribe)) => match client.subscriptions.acquire() {
                Some(subscription_permit) => {
                    let state = SubscriptionState {
                        conn_id: client.connection_id,
                        id_provider: &*client.id_provider,
                        subscription_permit,
                    };
                    let sink = client.sink.clone();
                    return ResponseFuture::future(subscribe(id, params, sink, state, extensions));
                }
                None => reject_too_many_subscriptions(client.subscriptions.max),
            },
            None => ErrorObject::from(ErrorCode::MethodNotFound),
        };
        ResponseFuture::ready(MethodResponse::error(id, error).with_extensions(extensions))
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let service = self.clone();
        async move {
            let limit = service.client.max_response_size;
            let mut responses = BatchResponseBuilder::new_with_limit(limit);
            let mut only_notifications = !batch.is_empty();
            for entry in batch {
                let response = match entry {
                    Ok(BatchEntry::Notification(_)) => continue,
                    Ok(BatchEntry::Call(request)) => service.call(request).await,
                    Err(invalid) => {
                        let (error, id) = invalid.into_parts();
                        MethodResponse::error(id, error)
                    }
                };
                only_notifications = false;
                if let Err(too_long) = responses.append(response) {
                    return too_long;
                }
            }
            if only_notifications {
                return MethodResponse::notification();
            }
            // Answers an empty batch with an error.
            MethodResponse::from_batch(responses.finish())
        }
    }

    /// A module has no methods for notifications.
    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = MethodResponse> + Send + 'a {
        let response = MethodResponse::notification().with_extensions(notification.extensions);
        std::future::ready(response)
    }
}

fn took_too_long(time: Duration) -> ErrorObject<'static> {
    let message = format!("The method took longer than {time:?}");
    ErrorObject::owned(CALL_EXECUTION_FAILED_CODE, message, None::<()>)
}
