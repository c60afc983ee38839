//! `pipe-server --forward`.

#[cfg(feature = "nats")]
mod hostile;
#[cfg(all(target_os = "linux", feature = "nats"))]
mod nats;
mod pipe;
#[cfg(feature = "nats")]
mod worker;
