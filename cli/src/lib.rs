//! What the programs `pipe-server`, `pipe-client` and `pipe-bench` share, and what their tests and
//! `comparison/` look into. The library for other programs is `pipe-server`; this one makes no promise
//! of compatibility.

pub mod escape;
pub mod exit;
pub mod family;
#[cfg(feature = "bench")]
pub mod load;
pub mod runtime;
pub mod text;
pub mod values;
