//! The programs as a user runs them.

#[cfg(feature = "bench")]
mod bench;
#[cfg(windows)]
mod console;
mod log;
mod program;
mod programs;
#[cfg(windows)]
mod sample;
