//! The only unsafe code: Windows calls that Tokio and the standard library don't make.
//!
//! Invariants: every handle and every allocation of the system is owned by a type that gives it back
//! when dropped; an impersonation never outlives the function that began it.
#![allow(unsafe_code)]

mod peer;
mod security;

#[cfg(feature = "test-util")]
pub(crate) use self::security::current_user;
pub(crate) use self::{
    peer::{client_of, is_broken, server_of},
    security::{SecurityDescriptor, create_server, is_current_user},
};
