//! The tests that need no process of their own, in one program.

mod api;
mod contract;
mod drops;
#[cfg(all(feature = "futures", feature = "tower"))]
mod features;
mod properties;
#[cfg(windows)]
mod win32;
#[cfg(windows)]
mod windows_only;
