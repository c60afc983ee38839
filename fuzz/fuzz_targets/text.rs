//! What a message looks like: UTF-8 or UTF-16, with a terminator or without.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipe_server_cli::text::{Encoding, Form};

fuzz_target!(|input: (&[u8], &str)| {
    let (message, text) = input;
    for encoding in [Encoding::Auto, Encoding::Utf8, Encoding::Utf16] {
        let form = Form::of(message, encoding);
        // Whoever reads UTF-16 gets whole characters.
        assert!(!form.wide || form.encode(text).len() % 2 == 0);
        assert!(encoding != Encoding::Utf8 || !form.wide);
        assert!(encoding != Encoding::Utf16 || form.wide);
    }
    if text.contains('\0') {
        return;
    }
    for (wide, terminated) in [(false, false), (false, true), (true, false), (true, true)] {
        let form = Form { wide, terminated };
        let encoded = form.encode(text);
        let encoding = if wide {
            Encoding::Utf16
        } else {
            Encoding::Utf8
        };
        assert_eq!(Form::of(&encoded, encoding), form, "{text:?}");
        // Only UTF-16 without a terminator can be mistaken.
        if terminated || !wide {
            assert_eq!(Form::of(&encoded, Encoding::Auto), form, "{text:?}");
        }
    }
});
