//! How messages are told apart in the stdin and stdout of a command that gets several requests.

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use super::{ExecError, NEWLINE, trim_newline};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Lines,
    /// The length comes first: 4 bytes, little endian.
    Frames,
}

impl Framing {
    /// The bytes for the command's stdin.
    pub(super) fn frame(self, request: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(request.len() + 4);
        match self {
            Self::Lines => {
                frame.extend_from_slice(request);
                frame.push(b'\n');
            }
            Self::Frames => {
                // A message is shorter than 4 GiB on every system.
                let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
                frame.extend_from_slice(&length.to_le_bytes());
                frame.extend_from_slice(request);
            }
        }
        frame
    }

    /// Reads one reply of up to `limit` bytes; `None` if the command closes its stdout instead.
    pub(super) async fn read(
        self,
        stdout: &mut (impl AsyncBufRead + Unpin),
        limit: usize,
    ) -> Result<Option<Vec<u8>>, ExecError> {
        let most = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut reply = Vec::new();
        match self {
            Self::Lines => {
                let mut stdout = stdout.take(most(limit.saturating_add(NEWLINE)));
                let read = stdout.read_until(b'\n', &mut reply).await;
                read.map_err(ExecError::Io)?;
                let complete = reply.ends_with(b"\n");
                trim_newline(&mut reply);
                if reply.len() > limit {
                    return Err(ExecError::TooLong(limit));
                }
                Ok(complete.then_some(reply))
            }
            Self::Frames => {
                let mut prefix = Vec::new();
                let read = (&mut *stdout).take(4).read_to_end(&mut prefix).await;
                read.map_err(ExecError::Io)?;
                let Ok(prefix) = <[u8; 4]>::try_from(prefix) else {
                    return Ok(None);
                };
                let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
                if length > limit {
                    return Err(ExecError::TooLong(limit));
                }
                let read = stdout.take(most(length)).read_to_end(&mut reply).await;
                read.map_err(ExecError::Io)?;
                Ok((reply.len() == length).then_some(reply))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn read_all(stdout: &[u8], framing: Framing) -> Vec<Result<Option<Vec<u8>>, ExecError>> {
        let mut stdout = BufReader::new(stdout);
        let mut replies = Vec::new();
        loop {
            let reply = framing.read(&mut stdout, 3).await;
            let last = !matches!(reply, Ok(Some(_)));
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    #[tokio::test]
    async fn lines_are_replies() {
        let replies = read_all(b"abc\nd\r\n\nabc\r\nincomplete", Framing::Lines).await;
        let [
            Ok(Some(first)),
            Ok(Some(second)),
            Ok(Some(empty)),
            Ok(Some(longest)),
            Err(error),
        ] = &replies[..]
        else {
            panic!("{replies:?}");
        };
        assert_eq!(
            [first, second, empty, longest],
            [&b"abc"[..], b"d", b"", b"abc"]
        );
        assert!(matches!(error, ExecError::TooLong(3)));
        let replies = read_all(b"ab", Framing::Lines).await;
        assert!(matches!(&replies[..], [Ok(None)]), "{replies:?}");
    }

    #[tokio::test]
    async fn frames_are_replies() {
        let replies = read_all(b"\x03\0\0\0a\nb\x01\0\0\0c\x04\0\0\0", Framing::Frames).await;
        let [
            Ok(Some(first)),
            Ok(Some(second)),
            Err(ExecError::TooLong(3)),
        ] = &replies[..]
        else {
            panic!("{replies:?}");
        };
        assert_eq!([first, second], [&b"a\nb"[..], b"c"]);
        for incomplete in [&b"\x03"[..], b"\x03\0\0\0ab"] {
            let replies = read_all(incomplete, Framing::Frames).await;
            assert!(matches!(&replies[..], [Ok(None)]), "{replies:?}");
        }
    }
}
