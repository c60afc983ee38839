//! The programs as a user runs them.

#[cfg(feature = "bench")]
mod bench;
mod client;
#[cfg(windows)]
mod console;
#[cfg(target_os = "linux")]
mod descriptors;
mod exec_mode;
#[cfg(feature = "nats")]
mod forward;
#[cfg(all(target_os = "linux", feature = "interactive"))]
mod interactive;
mod list;
mod log;
mod options;
mod program;
mod programs;
#[cfg(windows)]
mod sample;
#[cfg(windows)]
mod service;
#[cfg(target_os = "linux")]
mod systemd;
