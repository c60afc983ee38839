//! A reply, and what its headers say.

use pipe_server::Bytes;

use super::ForwardError;

/// How much of an error reply is logged, in characters.
const ERROR_KEPT: usize = 1024;

/// The headers of an error reply, by the convention of NATS's services.
const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// The status of the server's own reply to a request that nobody has subscribed to.
const NO_RESPONDERS: &str = "503";

/// Returns the payload, unless the headers or the payload say that it is no answer.
pub(super) fn check(
    headers: &[u8],
    payload: Vec<u8>,
    subject: &str,
) -> Result<Bytes, ForwardError> {
    let headers = String::from_utf8_lossy(headers);
    let (version, headers) = headers.split_once("\r\n").unwrap_or_default();
    let status = version.split_ascii_whitespace().nth(1);
    if status == Some(NO_RESPONDERS) && payload.is_empty() {
        return Err(ForwardError::NoResponders(subject.to_owned()));
    }
    let header = |name: &str| {
        let mut lines = headers
            .split("\r\n")
            .filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(found, _)| found.trim().eq_ignore_ascii_case(name))?;
        Some(value.trim().chars().take(ERROR_KEPT).collect::<String>())
    };
    let (code, text) = (header(ERROR_CODE_HEADER), header(ERROR_HEADER));
    if code.is_some() || text.is_some() {
        return Err(ForwardError::Worker {
            code: code.unwrap_or_default(),
            text: text.unwrap_or_default(),
        });
    }
    match payload.is_empty() {
        true => Err(ForwardError::Empty),
        false => Ok(payload.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(headers: &str, payload: &str) -> String {
        let checked = check(headers.as_bytes(), payload.as_bytes().to_vec(), "a.b");
        checked.unwrap_err().to_string()
    }

    #[test]
    fn headers_tell_a_failure_from_an_answer() {
        let answer = |headers: &str| check(headers.as_bytes(), b"body".to_vec(), "a").unwrap();
        assert_eq!(answer(""), "body");
        assert_eq!(answer("NATS/1.0\r\nX: 1\r\n\r\n"), "body");

        assert!(problem("NATS/1.0 503\r\n\r\n", "").contains("nobody answers on the subject a.b"));
        let both = "NATS/1.0\r\nnats-service-error-code:404\r\nNats-Service-Error:  no \r\n\r\n";
        assert!(problem(both, "body").contains("(404): no"));
        assert!(problem("NATS/1.0\r\nNats-Service-Error: no\r\n\r\n", "body").contains("no"));
        assert!(problem("", "").contains("empty"));
    }
}
