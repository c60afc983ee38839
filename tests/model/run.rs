//! Runs tests on the model with many seeds, or with one under Miri, which has seeds of its own.

use std::{
    cell::RefCell,
    env,
    future::{Future, poll_fn},
    ops::Range,
    pin::pin,
    task::Waker,
};

use tokio::runtime::Builder;

use super::{
    options::{Delivery, Options},
    world::Model,
};

thread_local! {
    /// The waker of the main future of this thread's runtime.
    static MAIN: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// The seeds to run a test with: those in `PIPE_MODEL_SEEDS` (`FIRST..LAST` or a single one), or
/// else `0..count`.
///
/// # Panics
///
/// Panics if the variable has neither form.
#[must_use]
pub fn seeds(count: u64) -> Range<u64> {
    if cfg!(miri) {
        let seed = fastrand::u64(..1 << 32);
        return seed..seed + 1;
    }
    let Ok(text) = env::var("PIPE_MODEL_SEEDS") else {
        return 0..count;
    };
    let parse = |number: &str| {
        number
            .parse()
            .expect("PIPE_MODEL_SEEDS has to be FIRST..LAST or SEED")
    };
    match text.split_once("..") {
        Some((first, last)) => parse(first)..parse(last),
        None => parse(&text)..parse(&text) + 1,
    }
}

/// Runs `test` on a new system, and checks that it leaks nothing.
///
/// Time is paused, and the seed determines the schedule. Under Miri, completions arrive on other
/// threads.
///
/// # Panics
///
/// Panics if the test panics or leaks.
pub fn run<T: Future>(options: Options, test: impl FnOnce() -> T) -> T::Output {
    if cfg!(miri) {
        return run_on_threads(options, test);
    }
    let model = Model::new(options);
    model.enter();
    fastrand::seed(options.seed);
    let mut builder = Builder::new_current_thread();
    builder.enable_time();
    #[cfg(pipe_model)]
    builder
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(
            &options.seed.to_le_bytes(),
        ))
        // One completion whenever the runtime is idle, and sometimes one before a task is polled.
        .on_thread_park(|| {
            if Model::step() {
                MAIN.with_borrow(|main| main.as_ref().map(Waker::wake_by_ref));
            }
        })
        .on_before_task_poll(|_| Model::maybe_step());
    let runtime = builder.build().expect("a runtime");
    let mut test = pin!(test());
    let output = runtime.block_on(poll_fn(|cx| {
        // The runtime calls no hook for its main future.
        Model::maybe_step();
        MAIN.set(Some(cx.waker().clone()));
        test.as_mut().poll(cx)
    }));
    MAIN.set(None);
    drop(runtime);
    model.finish();
    output
}

/// Like [`run`], with completions on other threads and in real time.
///
/// # Panics
///
/// Panics if the test panics or leaks.
pub fn run_on_threads<T: Future>(options: Options, test: impl FnOnce() -> T) -> T::Output {
    let model = Model::new(Options {
        delivery: Delivery::Threads(2),
        ..options
    });
    model.enter();
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let output = runtime.block_on(test());
    drop(runtime);
    model.finish();
    output
}
