//! Escaping of characters that could disguise text.

use std::fmt::{self, Write};

/// How a character is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// As Rust's `Debug` does: `\n`, `\u{1b}`.
    Text,
    /// As a string of JSON does: `\u001b`. Newlines and tabs are left alone: they can't be inside
    /// such a string, and only lay text out.
    Json,
    /// The same as `Text`, but newlines and tabs, which only lay text out, are left alone.
    Terminal,
}

/// Passes text on, with every control character escaped (C0, DEL, C1) and everything that breaks a
/// line or changes the direction of text.
///
/// Without it, text from clients and commands could forge log lines, clear the screen or appear
/// reordered.
pub struct Escaping<'a> {
    output: &'a mut dyn Write,
    notation: Notation,
}

impl<'a> Escaping<'a> {
    pub fn new(output: &'a mut dyn Write, notation: Notation) -> Self {
        Self { output, notation }
    }

    fn must_escape(&self, character: char) -> bool {
        match character {
            '\n' | '\t' => self.notation == Notation::Text,
            // Line and paragraph separator; marks, embeddings, overrides and isolates of
            // bidirectional text (Unicode Standard Annex #9).
            '\u{2028}'..='\u{202e}'
            | '\u{061c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2066}'..='\u{2069}' => true,
            other => other.is_control(),
        }
    }
}

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((index, character)) = rest
            .char_indices()
            .find(|&(_, character)| self.must_escape(character))
        {
            self.output.write_str(&rest[..index])?;
            match self.notation {
                Notation::Text | Notation::Terminal => {
                    write!(self.output, "{}", character.escape_default())?;
                }
                // All of them take one UTF-16 unit.
                Notation::Json => write!(self.output, "\\u{:04x}", u32::from(character))?,
            }
            rest = &rest[index + character.len_utf8()..];
        }
        self.output.write_str(rest)
    }
}

impl fmt::Debug for Escaping<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Escaping")
            .field("notation", &self.notation)
            .finish_non_exhaustive()
    }
}

/// Returns `text` as a single line.
pub fn escape(text: &str) -> String {
    escape_as(text, Notation::Text)
}

/// Returns `text` as lines that can't control a terminal.
pub fn escape_lines(text: &str) -> String {
    escape_as(&text.replace("\r\n", "\n"), Notation::Terminal)
}

/// Returns `json` as JSON that can't control a terminal.
pub fn escape_json(json: &str) -> String {
    // It can't be inside a string either, but lets a terminal write over the line.
    escape_as(&json.replace('\r', " "), Notation::Json)
}

fn escape_as(text: &str, notation: Notation) -> String {
    let mut escaped = String::with_capacity(text.len());
    // Writing to a String never fails.
    _ = Escaping::new(&mut escaped, notation).write_str(text);
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_directions_are_escaped_and_all_else_is_left() {
        let text = "a\r\n\t\0\x1b[2J\x7f\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}";
        assert_eq!(
            escape(text),
            r"a\r\n\t\u{0}\u{1b}[2J\u{7f}\u{9b}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}"
        );
        for direction in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert_eq!(
                escape(&direction.to_string()),
                format!(r"\u{{{:x}}}", u32::from(direction))
            );
        }
        for plain in ["", "grüße 猫 🐈", r"C:\temp", "שלום", "\u{200d}\u{a0}"] {
            assert_eq!(escape(plain), plain);
        }
    }

    #[test]
    fn lines_and_tabs_are_left_for_a_terminal() {
        assert_eq!(
            escape_lines("a\tb\r\nc\n\rd\x1b[2J\u{9b}\u{202e}"),
            "a\tb\nc\n\\rd\\u{1b}[2J\\u{9b}\\u{202e}"
        );
    }

    #[test]
    fn json_stays_json() {
        let line = escape_json("{\t\"a\":\"\u{202e}\u{7f}\\n\"\r}\n");
        assert_eq!(line, "{\t\"a\":\"\\u202e\\u007f\\n\" }\n");
    }
}
