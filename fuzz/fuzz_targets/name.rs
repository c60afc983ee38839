//! Pipe names: any bytes, as an argument of a program may be.

#![no_main]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use libfuzzer_sys::fuzz_target;
use pipe_server::PipeName;

fuzz_target!(|bytes: &[u8]| {
    let name = match PipeName::try_from(OsStr::from_bytes(bytes)) {
        Ok(name) => name,
        Err(error) => {
            // It is printed and logged.
            assert!(!error.to_string().chars().any(char::is_control), "{error}");
            return;
        }
    };
    let path = name.to_path();
    assert!(!path.as_os_str().as_bytes().contains(&0));
    assert!(!name.to_string().chars().any(char::is_control));
    match name.short() {
        Some(short) => {
            assert!(!short.is_empty() && !short.contains(['/', '\\']));
            assert_eq!(PipeName::try_from(short), Ok(name.clone()));
        }
        None => assert_eq!(path.as_os_str().as_bytes(), bytes),
    }
    if std::str::from_utf8(bytes).is_ok() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
});
