//! A model of Windows' named pipes and of the thread pool's I/O, for tests.
//!
//! Under `--cfg pipe_model`, and always under Miri, it takes the place of the system: `system` names its
//! [`functions`] instead of Windows'. It is written from the facts in `docs/wine.md` and Wine's
//! conformance tests, and where systems differ it has the [`Form`] of each. What it adds to a real
//! system:
//!
//! - **Every legal order.** A completion is delivered at any time after its operation has ended, in any
//!   order, on any thread. An operation that could end at once may also be pending and complete later.
//! - **Faults.** Any call may fail with an error that its page documents, at any time.
//! - **Memory is watched.** Buffers and `OVERLAPPED`s are used through the raw pointers that the system
//!   was given, when the operation ends; so Miri sees one that was freed early. What a read leaves of
//!   its buffer is overwritten.
//! - **Nothing may be left.** At the end of a run every handle, thread pool object, operation and block
//!   of memory has to have been given back.
//!
//! Which of these happens is drawn from a seed. With [`Delivery::Stepped`] and a runtime of one thread a
//! seed is a whole schedule and can be run again; with [`Delivery::Threads`] the threads add their own
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

/// Whose ways a model has, where systems differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// And earlier.
    Windows7,
    /// And later.
    Windows8,
    /// And 10.
    Wine8,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Windows7, Self::Windows8, Self::Wine8];

    /// Wine keeps access lists and lets everybody in.
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
        form.ok_or_else(|| format!("{text:?} is none of {:?}", Self::ALL))
    }
}

/// When and where completions are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By [`Model::step`] alone, on the thread that calls it.
    Stepped,
    /// By so many threads of the pool, at any time.
    Threads(usize),
}

/// What a model does of its own accord.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What everything is drawn from that the system decides.
    pub seed: u64,
    /// Whose ways the system has.
    pub form: Form,
    /// When and where completions are delivered.
    pub delivery: Delivery,
    /// Only what the form's facts say, and nothing that is merely legal.
    pub strict: bool,
    /// How many of 1,000 calls fail.
    pub faults: u32,
}

impl Options {
    /// Everything that is legal, without faults, in a form that the seed chooses.
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

/// A system of its own. Threads that have entered it create and open its pipes.
#[derive(Debug)]
pub struct Model {
    world: Arc<World>,
}

/// What a model's handles lead to.
#[derive(Debug)]
struct World {
    id: usize,
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
    pool: Mutex<Vec<JoinHandle<()>>>,
}

/// How many handles and thread pool objects one world has room for, by the bits of their numbers.
const WORLD_BITS: u32 = 20;

static WORLDS: Mutex<BTreeMap<usize, Weak<World>>> = Mutex::new(BTreeMap::new());

thread_local! {
    static ENTERED: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

impl Model {
    /// A system without pipes. The calling thread has yet to [`enter`](Self::enter) it.
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

    /// A function that has the thread that calls it enter the system of this thread.
    ///
    /// That system gets a pool of threads, if it has none: nobody can step where several threads run.
    pub fn entered() -> impl Fn() + Clone + Send + Sync + 'static {
        let world = current();
        if lock(&world.pool).is_empty() {
            world.start_pool(2);
        }
        move || enter(&world)
    }

    /// The form of the system of this thread.
    #[must_use]
    pub fn form() -> Form {
        current().options.form
    }

    /// Makes this the system of the calling thread.
    pub fn enter(&self) {
        enter(&self.world);
    }

    /// Has the processes that act from now on run as `user`.
    pub fn run_as(user: User) {
        current().lock().token = Token::new(user);
    }

    /// Delivers one of the completions that wait, if there is one.
    pub fn step() -> bool {
        current().step()
    }

    /// As `step`, or does nothing: the seed decides.
    pub fn maybe_step() {
        let world = current();
        let now = world.lock().rng.u8(..4) == 0;
        if now {
            world.step();
        }
    }

    /// Ends the model, after the last completion.
    ///
    /// # Panics
    ///
    /// Panics if anything was not given back.
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
        // After `finish` there is nothing left to do. In a panic the test has failed already, and what is
        // left may be in any state.
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
        .expect("a handle of a system that is there")
}

fn all_worlds() -> impl Iterator<Item = Arc<World>> {
    let worlds: Vec<_> = lock(&WORLDS).values().filter_map(Weak::upgrade).collect();
    worlds.into_iter()
}

/// Has every panic, also one that ends the process, say which seed it came with.
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
