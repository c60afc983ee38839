//! The sample's client against our server program.

use support::{
    unique_name,
    win32::{call_as_the_sample_does, utf16},
};

use crate::program::Server;

#[test]
fn both_builds_of_the_samples_client_are_answered_by_the_overlapped_engine() {
    are_answered_by("overlapped");
}

#[test]
fn both_builds_of_the_samples_client_are_answered_by_the_tokio_engine() {
    are_answered_by("tokio");
}

fn are_answered_by(engine: &str) {
    let program = Server::start(&unique_name(), &["--engine", engine]);
    let line = program.first_line.trim_end();
    let address = line.strip_prefix("listening on ").unwrap();
    for encode in [utf16, ansi] {
        let request = encode("Default message from client.");
        let answer = encode("default answer from server");
        assert_eq!(call_as_the_sample_does(address, &request), answer);
    }
}

/// A text as the sample's ANSI build sends it.
fn ansi(text: &str) -> Vec<u8> {
    format!("{text}\0").into_bytes()
}
