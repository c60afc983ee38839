//! A model of Windows named pipes and of thread pool I/O, for tests.
//!
//! Under `--cfg pipe_model`, and always under Miri, it replaces the system: `system` re-exports its
//! [`functions`] instead of Windows'. It implements the facts in `docs/wine.md` and Wine's conformance
//! tests, with a [`Form`] for each system that differs. Beyond a real system, it has:
//!
//! - **Every legal order.** A completion is delivered at any time after its operation has ended, in any
//!   order, on any thread. An operation that could complete at once may also pend and complete later.
//! - **Faults.** Any call may fail with an error that its page documents, at any time.
//! - **Memory checks.** The model accesses buffers and `OVERLAPPED`s through the caller's raw pointers when
//!   an operation ends, so Miri reports one that was freed early. It overwrites the part of a buffer that
//!   a read leaves unused.
//! - **Leak checks.** At the end of a run, no handle, thread pool object, operation or block of memory
//!   may be left.
//!
//! All choices come from a seed. With [`Delivery::Stepped`] and a single-threaded runtime, a seed
//! determines the whole schedule and reproduces it. With [`Delivery::Threads`] the threads add their own
//! order, which under Miri is seeded too.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    mem, panic,
    str::FromStr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use self::{security::Token, state::State};

pub mod functions;
mod run;
mod security;
mod state;

pub use self::{
    run::{run, run_on_threads, seeds},
    security::User,
};

/// The system that a model imitates, where systems differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Windows 7 and earlier.
    Windows7,
    /// Windows 8 and later.
    Windows8,
    /// Wine 8 and 10.
    Wine8,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Windows7, Self::Windows8, Self::Wine8];

    /// Whether access lists are enforced. Wine only stores them.
    #[must_use]
    pub fn checks_access(self) -> bool {
        self != Self::Wine8
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |form: &Self| format!("{form:?}") == text;
        let form = Self::ALL.into_iter().find(named);
        form.ok_or_else(|| format!("{text:?} is not one of {:?}", Self::ALL))
    }
}

/// When and where completions are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Only by [`Model::step`], on the thread that calls it.
    Stepped,
    /// At any time, by a pool with this number of threads.
    Threads(usize),
}

/// The options of a model.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed of everything that the system decides.
    pub seed: u64,
    /// The system to imitate.
    pub form: Form,
    /// When and where completions are delivered.
    pub delivery: Delivery,
    /// Do only what the facts of the form say, not everything that is legal.
    pub strict: bool,
    /// How many calls in 1,000 fail.
    pub faults: u32,
}

impl Options {
    /// Everything that is legal, without faults, in a form chosen by the seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            form: Form::ALL[(seed % 3) as usize],
            delivery: Delivery::Stepped,
            strict: false,
            faults: 0,
        }
    }
}

/// A simulated system. A thread that has entered it creates and opens its pipes.
#[derive(Debug)]
pub struct Model {
    world: Arc<World>,
}

/// The state of a system, which its handles refer to.
#[derive(Debug)]
struct World {
    id: usize,
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
    pool: Mutex<Vec<JoinHandle<()>>>,
}

/// The low bits of a handle's or thread pool object's number. The rest identifies its world.
const WORLD_BITS: u32 = 20;

static WORLDS: Mutex<BTreeMap<usize, Weak<World>>> = Mutex::new(BTreeMap::new());

thread_local! {
    static ENTERED: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

impl Model {
    /// Creates a system without pipes. The calling thread still has to [`enter`](Self::enter) it.
    #[must_use]
    pub fn new(options: Options) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        tell_seeds();
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let world = Arc::new(World {
            id,
            options,
            state: Mutex::new(State::new(id, options)),
            changed: Condvar::new(),
            pool: Mutex::default(),
        });
        lock(&WORLDS).insert(id, Arc::downgrade(&world));
        if let Delivery::Threads(threads) = options.delivery {
            world.start_pool(threads);
        }
        Self { world }
    }

    /// Returns a function that makes its calling thread enter this thread's system.
    ///
    /// The system gets a thread pool if it has none, since several threads can't be stepped.
    pub fn entered() -> impl Fn() + Clone + Send + Sync + 'static {
        let world = current();
        if lock(&world.pool).is_empty() {
            world.start_pool(2);
        }
        move || enter(&world)
    }

    /// The form of this thread's system.
    #[must_use]
    pub fn form() -> Form {
        current().options.form
    }

    /// Makes this the calling thread's system.
    pub fn enter(&self) {
        enter(&self.world);
    }

    /// Runs all processes as `user` from now on.
    pub fn run_as(user: User) {
        current().lock().token = Token::new(user);
    }

    /// Delivers one pending completion. Returns whether there was one.
    pub fn step() -> bool {
        current().step()
    }

    /// Calls [`step`](Self::step) or does nothing, as the seed decides.
    pub fn maybe_step() {
        let world = current();
        let now = world.lock().rng.u8(..4) == 0;
        if now {
            world.step();
        }
    }

    /// Delivers the remaining completions and ends the model.
    ///
    /// # Panics
    ///
    /// Panics if anything was leaked.
    pub fn finish(self) {
        self.stop();
        self.world.lock().check_empty();
    }

    fn stop(&self) {
        self.world.lock().stopping = true;
        self.world.changed.notify_all();
        let pool = mem::take(&mut *lock(&self.world.pool));
        for thread in pool {
            if let Err(panic) = thread.join() {
                panic::resume_unwind(panic);
            }
        }
        while self.world.step() {}
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // After `finish`, `stop` does nothing. During a panic the remaining state may be inconsistent, so no
        // completions are delivered.
        if !thread::panicking() {
            self.stop();
        } else {
            self.world.lock().stopping = true;
            self.world.changed.notify_all();
        }
        lock(&WORLDS).remove(&self.world.id);
        ENTERED.with_borrow_mut(|entered| {
            if entered
                .as_ref()
                .is_some_and(|world| world.id == self.world.id)
            {
                *entered = None;
            }
        });
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn start_pool(self: &Arc<Self>, threads: usize) {
        lock(&self.pool).extend((0..threads).map(|_| {
            let world = Arc::clone(self);
            thread::spawn(move || {
                enter(&world);
                world.deliver_until_stopped();
            })
        }));
    }

    fn step(&self) -> bool {
        let completion = self.lock().take_completion();
        match completion {
            Some(completion) => {
                completion.call();
                true
            }
            None => false,
        }
    }

    fn deliver_until_stopped(&self) {
        loop {
            let completion = {
                let mut state = self.lock();
                loop {
                    if let Some(completion) = state.take_completion() {
                        break completion;
                    }
                    if state.stopping {
                        return;
                    }
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            completion.call();
        }
    }
}

/// The system that the calling thread has entered.
fn current() -> Arc<World> {
    ENTERED
        .with_borrow(Clone::clone)
        .expect("this thread has entered no model")
}

fn enter(world: &Arc<World>) {
    ENTERED.set(Some(Arc::clone(world)));
}

/// The system of a handle or a thread pool object.
fn world_of(number: usize) -> Arc<World> {
    lock(&WORLDS)
        .get(&(number >> WORLD_BITS))
        .and_then(Weak::upgrade)
        .expect("the system of this handle no longer exists")
}

fn all_worlds() -> impl Iterator<Item = Arc<World>> {
    let worlds: Vec<_> = lock(&WORLDS).values().filter_map(Weak::upgrade).collect();
    worlds.into_iter()
}

/// Makes every panic print its seed, even one that aborts the process.
fn tell_seeds() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if let Ok(Some(world)) = ENTERED.try_with(|entered| {
                let entered = entered.try_borrow().ok()?;
                entered.clone()
            }) {
                eprintln!("the model ran with {:?}", world.options);
            }
            before(info);
        }));
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
