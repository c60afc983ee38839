//! The programs as a user runs them.

#[cfg(feature = "bench")]
mod bench;
#[cfg(windows)]
mod console;
#[cfg(target_os = "linux")]
mod descriptors;
mod log;
mod program;
mod programs;
#[cfg(windows)]
mod sample;
#[cfg(target_os = "linux")]
mod systemd;
