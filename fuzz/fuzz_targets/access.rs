//! Who may connect, as text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipe_server::{Access, os::linux::AccessExt as _};

fuzz_target!(|text: &str| {
    match text.parse::<Access>() {
        Ok(access) => {
            assert_eq!(access.to_string().parse(), Ok(access.clone()));
            if let Some(mode) = access.as_mode() {
                assert!(mode <= 0o777);
                assert!(
                    text["mode:".len()..]
                        .bytes()
                        .all(|digit| digit.is_ascii_digit())
                );
            }
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
});
