//! The only unsafe code: Windows calls that Tokio and the standard library do not provide.
//!
//! Invariants: every handle is owned by a type that closes it on drop, every allocation of the
//! system is freed, and an impersonation never outlives the function that began it.
#![allow(unsafe_code)]

mod functions;
mod handle;
#[cfg(not(pipe_model))]
mod inheritance;
#[cfg(pipe_model)]
#[path = "../../../tests/model/mod.rs"]
pub mod model;
mod operations;
mod peer;
mod pipe;
#[cfg(not(pipe_model))]
mod port;
mod security;

#[cfg(not(pipe_model))]
pub(crate) use self::inheritance::without_inherited_stdio;
pub(crate) use self::security::{current_user, is_own};
pub(super) use self::{
    handle::cancel,
    peer::{client_of, peer_has_closed, peer_has_left_nothing, server_of, unread_bytes},
    pipe::{InstanceOptions, MessagePart, PipeEnd, create_instance, open_instance, write_error},
    security::{SecurityDescriptor, create_tokio_server},
};
