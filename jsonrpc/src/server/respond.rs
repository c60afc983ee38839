//! From a message to its response.

use std::collections::BTreeMap;

use jsonrpsee_core::{
    middleware::{Batch, BatchEntry, BatchEntryErr, Notification, Request},
    server::{Extensions, MethodResponse, prepare_error},
};
use jsonrpsee_types::{
    ErrorCode, Id,
    error::{
        ErrorObject, OVERSIZED_RESPONSE_CODE, OVERSIZED_RESPONSE_MSG, reject_too_big_batch_request,
    },
};
use serde_json::value::RawValue;
use tracing::Span;

use super::service::Service;

/// Responds to one message, which is a request, a notification or a batch.
///
/// Neither parsing nor skipping a value recurses without a limit: what the parameters contain is
/// first skipped over, and then parsed by the method, which accepts 128 levels.
pub(super) async fn respond(
    message: &[u8],
    service: &impl Service,
    extensions: &Extensions,
    max_batch: usize,
) -> MethodResponse {
    let json = message.trim_ascii_start();
    match json.first() {
        Some(b'{') => match parse(json, extensions) {
            Some(BatchEntry::Call(request)) => {
                Span::current().record("rpc.method", &*request.method);
                service.call(request).await
            }
            Some(BatchEntry::Notification(notification)) => {
                service.notification(notification).await
            }
            None => {
                let (id, mut code) = prepare_error(json);
                if members(json).is_some() {
                    // It is well-formed JSON, but not a request, or one with an invalid id.
                    code = ErrorCode::InvalidRequest;
                }
                MethodResponse::error(id, ErrorObject::from(code))
            }
        },
        Some(b'[') => match parse_batch(json, extensions, max_batch) {
            Ok(batch) => service.batch(batch).await,
            Err(error) => MethodResponse::error(Id::Null, error),
        },
        _ => MethodResponse::error(Id::Null, ErrorObject::from(ErrorCode::ParseError)),
    }
}

/// Replaces a response that is too long, which only an error can be here: jsonrpsee limits results.
pub(super) fn limit(response: MethodResponse, message: &[u8], limit: usize) -> MethodResponse {
    if response.as_json().get().len() <= limit {
        return response;
    }
    let (id, _) = prepare_error(message);
    let error = ErrorObject::borrowed(OVERSIZED_RESPONSE_CODE, OVERSIZED_RESPONSE_MSG, None);
    MethodResponse::error(id, error)
}

/// Parses a request or a notification, which is a request without an id. A request whose id is
/// invalid is neither: its client waits for an answer.
fn parse<'a>(json: &'a [u8], extensions: &Extensions) -> Option<BatchEntry<'a>> {
    if let Ok(mut request) = serde_json::from_slice::<Request<'a>>(json) {
        *request.extensions_mut() = extensions.clone();
        return Some(BatchEntry::Call(request));
    }
    if members(json)?.contains_key("id") {
        return None;
    }
    let mut notification: Notification<'a> = serde_json::from_slice(json).ok()?;
    *notification.extensions_mut() = extensions.clone();
    Some(BatchEntry::Notification(notification))
}

/// The members of an object.
fn members(json: &[u8]) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_slice(json).ok()
}

fn parse_batch<'a>(
    json: &'a [u8],
    extensions: &Extensions,
    max_batch: usize,
) -> Result<Batch<'a>, ErrorObject<'static>> {
    let entries: Vec<&RawValue> =
        serde_json::from_slice(json).map_err(|_| ErrorObject::from(ErrorCode::ParseError))?;
    if entries.len() > max_batch {
        return Err(reject_too_big_batch_request(max_batch));
    }
    let parsed = entries.into_iter().map(|entry| {
        let json = entry.get().as_bytes();
        parse(json, extensions).ok_or_else(|| {
            // The entry is valid JSON, so the code is never that of a parse error.
            let (id, _) = prepare_error(json);
            BatchEntryErr::new(id, ErrorObject::from(ErrorCode::InvalidRequest))
        })
    });
    Ok(Batch::from(parsed.collect()))
}
