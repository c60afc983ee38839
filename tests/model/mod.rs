//! A model of Windows named pipes and completion ports, for tests.
//!
//! Under `--cfg pipe_model` it replaces the system: `functions` of `src/engine/windows/sys/`
//! re-exports its [`functions`] instead of Windows'. It implements the facts in `docs/wine.md` and
//! Wine's conformance tests, with a [`Form`] for each system that differs. Beyond a real system, it
//! has:
//!
//! - **Every legal order.** A completion is delivered at any time after its operation has ended, in
//!   any order, on any thread. An operation that could complete at once may also pend and complete
//!   later.
//! - **Faults.** Any call may fail with an error that its page documents, at any time, and a
//!   connect may fail after its call has returned.
//! - **Memory checks.** The model accesses buffers and `OVERLAPPED`s through the caller's raw
//!   pointers when an operation ends, so Miri reports one that was freed early. It overwrites the
//!   part of a buffer that a read leaves unused.
//! - **Leak checks.** At the end of a run, no handle, operation, packet or block of memory may be
//!   left.
//!
//! All choices come from a seed. With [`Delivery::Stepped`] and a single-threaded runtime, a seed
//! determines the whole schedule and reproduces it. With [`Delivery::Threads`] the threads add
//! their own order, which under Miri is seeded too.

pub mod functions;
mod options;
mod run;
mod security;
mod state;
mod world;

pub use self::{
    options::{Delivery, Form, Options},
    run::{run, run_on_threads, seeds},
    security::User,
    world::Model,
};
