//! Code shared by the programs `pipe-server`, `pipe-client`, `pipe-list` and `pipe-bench`, their
//! tests and `comparison/`. The library for other programs is `pipe-server`; this one promises no
//! compatibility.

#[cfg(not(any(windows, target_os = "linux")))]
compile_error!(
    "the programs run on Windows and Linux: elsewhere use the library, whose pipes in memory (feature test-util) \
     run on every Unix"
);

pub mod command_line;
pub mod credentials;
pub mod escape;
pub mod exit;
mod generate;
#[cfg(feature = "bench")]
pub mod load;
#[cfg(target_os = "linux")]
pub mod memory_limit;
pub mod mutex;
#[cfg(target_os = "linux")]
pub mod open_files;
pub mod process_group;
pub mod recording;
pub mod runtime;
pub mod streams;
pub mod text;
pub mod values;
