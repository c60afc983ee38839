//! Sizes, times and limits of the command line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipe_server_cli::values::{TimeLimit, duration, size};

fuzz_target!(|text: &str| {
    if let Ok(bytes) = size(text) {
        assert!(bytes > 0);
        assert_eq!(size(&bytes.to_string()), Ok(bytes));
        // What is written in digits is taken to the last of them, or not at all.
        if text.bytes().all(|digit| digit.is_ascii_digit()) {
            assert_eq!(text.parse(), Ok(bytes), "{text}");
        }
    }
    if let Ok(time) = duration(text) {
        let limit = text.parse::<TimeLimit>();
        assert_eq!(
            limit,
            Ok(TimeLimit(Some(time).filter(|time| !time.is_zero())))
        );
    }
});
