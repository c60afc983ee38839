//! Simulated systems, the threads in them, and the packets that their ports deliver to the library.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    mem, panic,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    options::{Delivery, Form, Options},
    security::{Token, User},
    state::{Bound, Packet, State, WORLD_BITS},
};

/// A simulated system. A thread that has entered it creates and opens its pipes.
#[derive(Debug)]
pub struct Model {
    world: Arc<World>,
}

/// The state of a system, which its handles refer to.
#[derive(Debug)]
pub(super) struct World {
    id: usize,
    options: Options,
    state: Mutex<State>,
    pub(super) changed: Condvar,
    /// The threads of the library's port.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

static WORLDS: Mutex<BTreeMap<usize, Weak<World>>> = Mutex::new(BTreeMap::new());

/// See [`Model::before_next_connect`].
type Hook = Box<dyn FnOnce()>;

thread_local! {
    static BEFORE_CONNECT: Cell<Option<Hook>> = const { Cell::new(None) };
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
            threads: Mutex::default(),
        });
        lock(&WORLDS).insert(id, Arc::downgrade(&world));
        if let Delivery::Threads(threads) = options.delivery {
            world.start_threads(threads);
        }
        Self { world }
    }

    /// Returns a function that makes its calling thread enter this thread's system.
    ///
    /// The system's port gets threads if it has none, since several threads can't be stepped.
    pub fn entered() -> impl Fn() + Clone + Send + Sync + 'static {
        let world = current();
        if lock(&world.threads).is_empty() {
            world.start_threads(2);
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

    /// Calls `hook` when this thread calls `ConnectNamedPipe` next, before that does anything.
    pub fn before_next_connect(hook: impl FnOnce() + 'static) {
        BEFORE_CONNECT.set(Some(Box::new(hook)));
    }

    /// Makes the next `WriteFile` on this thread's system fail.
    pub fn fail_next_write(code: u32) {
        current().lock().next_write_fails = Some(code);
    }

    /// Ends every connect in flight on this thread's system with an error. Returns the number of
    /// connects.
    pub fn fail_connects(code: u32) -> usize {
        let world = current();
        let failed = world.lock().fail_connects(code);
        world.changed.notify_all();
        failed
    }

    /// Delivers one packet. Returns whether there was one.
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

    /// Delivers the remaining packets and ends the model.
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
        let threads = mem::take(&mut *lock(&self.world.threads));
        for thread in threads {
            if let Err(panic) = thread.join() {
                panic::resume_unwind(panic);
            }
        }
        while self.world.step() {}
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // After `finish`, `stop` does nothing. During a panic the remaining state may be
        // inconsistent, so no packets are delivered.
        if thread::panicking() {
            self.world.lock().stopping = true;
            self.world.changed.notify_all();
        } else {
            self.stop();
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
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn start_threads(self: &Arc<Self>, count: usize) {
        lock(&self.threads).extend((0..count).map(|_| {
            let world = Arc::clone(self);
            thread::spawn(move || {
                enter(&world);
                world.deliver_until_stopped();
            })
        }));
    }

    fn step(&self) -> bool {
        let packet = self.lock().take_packet();
        match packet {
            Some(packet) => {
                deliver(packet);
                true
            }
            None => false,
        }
    }

    fn deliver_until_stopped(&self) {
        loop {
            let packet = {
                let mut state = self.lock();
                loop {
                    if let Some(packet) = state.take_packet() {
                        break packet;
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
            deliver(packet);
        }
    }
}

/// Calls the library, as a thread of its port does.
fn deliver(packet: Packet) {
    let Packet {
        bound,
        overlapped,
        code,
        length,
    } = packet;
    let Bound::Library { key, completed } = bound else {
        unreachable!("a packet of another port");
    };
    // SAFETY: the caller of `bind_to_port` guarantees this for each operation that it starts.
    unsafe { completed(key, overlapped, code, length) };
}

/// The system that the calling thread has entered.
pub(super) fn current() -> Arc<World> {
    ENTERED
        .with_borrow(Clone::clone)
        .expect("this thread has entered no model")
}

fn enter(world: &Arc<World>) {
    ENTERED.set(Some(Arc::clone(world)));
}

pub(super) fn run_hook_before_connect() {
    if let Some(hook) = BEFORE_CONNECT.take() {
        hook();
    }
}

/// The system of a handle.
pub(super) fn world_of(number: usize) -> Arc<World> {
    lock(&WORLDS)
        .get(&(number >> WORLD_BITS))
        .and_then(Weak::upgrade)
        .expect("the system of this handle no longer exists")
}

pub(super) fn all_worlds() -> impl Iterator<Item = Arc<World>> {
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
