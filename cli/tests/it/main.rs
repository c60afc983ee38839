//! The programs as a user runs them.

mod access;
#[cfg(feature = "bench")]
mod bench;
mod client;
mod codes;
#[cfg(windows)]
mod console;
#[cfg(target_os = "linux")]
mod descriptors;
mod dump;
mod exec;
#[cfg(unix)]
mod exec_limit;
mod exec_mode;
mod forward;
#[cfg(all(target_os = "linux", feature = "interactive"))]
mod interactive;
mod killed;
#[cfg(target_os = "linux")]
mod limits;
mod list;
mod log;
#[cfg(target_os = "linux")]
mod names;
mod on_demand;
mod options;
mod program;
mod replay;
mod rpc;
#[cfg(windows)]
mod sample;
mod server;
#[cfg(windows)]
mod service;
#[cfg(target_os = "linux")]
mod streams;
#[cfg(target_os = "linux")]
mod suspended;
#[cfg(target_os = "linux")]
mod systemd;
