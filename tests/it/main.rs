//! The tests that need no process of their own, in one program.

mod abuse;
mod api;
mod auto_traits;
mod budget;
mod concurrency;
mod connections;
mod contract;
mod drops;
mod faults;
#[cfg(all(feature = "futures", feature = "tower"))]
mod features;
mod halves;
#[cfg(target_os = "linux")]
mod hostile;
#[cfg(target_os = "linux")]
mod inherited;
#[cfg(all(windows, not(pipe_model)))]
mod inline;
#[cfg(target_os = "linux")]
mod linux_only;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(all(windows, pipe_model))]
mod model;
mod observe;
mod on_demand;
mod options;
#[cfg(target_os = "linux")]
mod other_users;
mod peers;
mod properties;
mod restarts;
mod shared_client;
mod shared_client_late;
mod state;
#[cfg(all(feature = "json", feature = "postcard"))]
mod typed;
#[cfg(all(windows, not(pipe_model)))]
mod win32;
#[cfg(all(windows, not(pipe_model)))]
mod windows_only;
