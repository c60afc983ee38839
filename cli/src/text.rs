//! Text on the wire. The sample's programs send `TCHAR` strings with a terminating NUL: UTF-16LE in
//! a Unicode build, otherwise one byte per character.

use clap::ValueEnum;

/// The encoding chosen by the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// What the message looks like
    #[default]
    Auto,
    /// UTF-8
    #[value(name = "utf-8")]
    Utf8,
    /// UTF-16, little endian
    #[value(name = "utf-16")]
    Utf16,
}

/// How a text is encoded in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// UTF-16LE; otherwise UTF-8.
    pub wide: bool,
    /// A NUL follows the text, as wide as a character.
    pub terminated: bool,
}

impl Form {
    /// The form of `message`; its encoding is `encoding` unless that is [`Encoding::Auto`].
    pub fn of(message: &[u8], encoding: Encoding) -> Self {
        let wide = match encoding {
            Encoding::Auto => looks_wide(message),
            Encoding::Utf8 => false,
            Encoding::Utf16 => true,
        };
        let terminated = match wide {
            true => message.len() % 2 == 0 && message.ends_with(&[0, 0]),
            false => message.ends_with(&[0]),
        };
        Self { wide, terminated }
    }

    /// Encodes `text` in this form.
    pub fn encode(self, text: &str) -> Vec<u8> {
        let end = self.terminated.then_some('\0');
        let characters = text.chars().chain(end);
        match self.wide {
            true => {
                let text: String = characters.collect();
                text.encode_utf16().flat_map(u16::to_le_bytes).collect()
            }
            false => characters.collect::<String>().into_bytes(),
        }
    }
}

/// Whether a message is UTF-16LE text rather than UTF-8.
///
/// It is if its length is even and it begins with a byte order mark or has a NUL byte before its
/// last byte. UTF-8 text has no NUL but the terminator; UTF-16 text has one in each ASCII character
/// and two in its terminator. So only UTF-16 without a terminator and without any ASCII character,
/// such as a space or digit, is missed. `A`, NUL is taken for terminated UTF-8, not for one UTF-16
/// character.
///
/// Invalid UTF-8 is no evidence: the sample's other build sends the system's code page.
fn looks_wide(message: &[u8]) -> bool {
    if message.is_empty() || message.len() % 2 != 0 {
        return false;
    }
    message.starts_with(&BYTE_ORDER_MARK) || message[..message.len() - 1].contains(&0)
}

const BYTE_ORDER_MARK: [u8; 2] = [0xff, 0xfe];

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "Default message from client.";

    fn form(wide: bool, terminated: bool) -> Form {
        Form { wide, terminated }
    }

    #[test]
    fn both_builds_of_the_samples_client_are_known() {
        for wide in [false, true] {
            let sent = form(wide, true).encode(REQUEST);
            assert_eq!(Form::of(&sent, Encoding::Auto), form(wide, true));
        }
    }

    #[test]
    fn text_without_terminator_is_known() {
        for (wide, text) in [
            (false, REQUEST),
            (true, REQUEST),
            (false, "größer"),
            (true, "größer"),
        ] {
            let sent = form(wide, false).encode(text);
            assert_eq!(Form::of(&sent, Encoding::Auto), form(wide, false), "{text}");
        }
    }

    #[test]
    fn a_terminated_text_is_known_at_any_length() {
        for length in 0..10 {
            for wide in [false, true] {
                for letter in ["a", "ß", "猫", "🐈"] {
                    let sent = form(wide, true).encode(&letter.repeat(length));
                    assert_eq!(
                        Form::of(&sent, Encoding::Auto),
                        form(wide, true),
                        "{sent:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_code_page_is_not_taken_for_utf_16() {
        assert_eq!(
            Form::of(b"Gr\xfc\xdfe an\0", Encoding::Auto),
            form(false, true)
        );
    }

    #[test]
    fn an_encoding_that_was_asked_for_is_not_guessed() {
        assert_eq!(Form::of(b"a\0b\0", Encoding::Utf8), form(false, true));
        assert_eq!(Form::of(b"ab", Encoding::Utf16), form(true, false));
        assert_eq!(Form::of(b"a\0\0", Encoding::Utf16), form(true, false));
    }

    #[test]
    fn a_byte_order_mark_tells() {
        assert!(looks_wide(b"\xff\xfe\x2b\x73"));
        assert!(!looks_wide(b"\xff\xfe\x2b"));
    }
}
