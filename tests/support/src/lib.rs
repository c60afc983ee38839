//! Shared by the tests: pipes on every engine, unique names, and plain Windows calls.

#[cfg(windows)]
use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::{
    env,
    future::Future,
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use pipe_server::{
    Client, ClientOptions, ListenerOptions, MemoryPipe, PipeListener, Serve, SharedClient,
    SharedClientOptions,
};

pub mod log;
pub mod nats;
#[cfg(any(windows, target_os = "linux"))]
pub mod process;
#[cfg(windows)]
pub mod raw_pipe;
pub mod server;
#[cfg(windows)]
pub mod token;
#[cfg(windows)]
pub mod win32;

/// Runs each named function as one test per engine.
///
/// The clock of the memory engine's tests is paused, and jumps to the next timer when nothing else
/// is left to do, unless the names follow `threads:`: the clock would not wait for a thread.
///
/// After `serving:`, each test also runs with inline completions, where a system has them.
///
/// On the model of Windows there is one engine, and each test runs with many seeds. Time is paused
/// there too, and the seed determines the schedule, unless the names follow `threads:`.
#[cfg(not(all(windows, pipe_model)))]
#[macro_export]
macro_rules! on_every_engine {
    (threads: $($test:ident),* $(,)?) => {
        $crate::on_every_engine!(@engine memory, Memory, false, $($test),*);
        $crate::on_every_engine!(@system $($test),*);
    };
    (serving: $($test:ident),* $(,)?) => {
        $crate::on_every_engine!($($test),*);
        #[cfg(windows)]
        $crate::on_every_engine!(@engine overlapped_inline, OverlappedInline, false, $($test),*);
    };
    ($($test:ident),* $(,)?) => {
        $crate::on_every_engine!(@engine memory, Memory, true, $($test),*);
        $crate::on_every_engine!(@system $($test),*);
    };
    (@system $($test:ident),*) => {
        #[cfg(target_os = "linux")]
        $crate::on_every_engine!(@engine seqpacket, Seqpacket, false, $($test),*);
        #[cfg(target_os = "linux")]
        $crate::on_every_engine!(@engine inherited, Inherited, false, $($test),*);
        #[cfg(windows)]
        $crate::on_every_engine!(@engine overlapped, Overlapped, false, $($test),*);
        #[cfg(windows)]
        $crate::on_every_engine!(@engine tokio_pipe, Tokio, false, $($test),*);
    };
    (@engine $module:ident, $kind:ident, $paused:literal, $($test:ident),*) => {
        mod $module {
            $(
                #[tokio::test(start_paused = $paused)]
                async fn $test() {
                    $crate::in_time(super::$test($crate::Kind::$kind)).await;
                }
            )*
        }
    };
}

#[cfg(all(windows, pipe_model))]
#[macro_export]
macro_rules! on_every_engine {
    (threads: $($test:ident),* $(,)?) => {
        $crate::on_every_engine!(@run overlapped, Overlapped, run_on_threads, $($test),*);
    };
    (serving: $($test:ident),* $(,)?) => {
        $crate::on_every_engine!($($test),*);
        $crate::on_every_engine!(@run overlapped_inline, OverlappedInline, run, $($test),*);
    };
    ($($test:ident),* $(,)?) => {
        $crate::on_every_engine!(@run overlapped, Overlapped, run, $($test),*);
    };
    (@run $module:ident, $kind:ident, $run:ident, $($test:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    use pipe_server::model::{$run, Options, seeds};
                    for seed in seeds(30) {
                        $run(Options::seeded(seed), || {
                            $crate::in_time(super::$test($crate::Kind::$kind))
                        });
                    }
                }
            )*
        }
    };
}

/// Runs a test, and panics if it hangs.
pub async fn in_time(test: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(DEADLINE, test).await;
    ended.expect("the test hangs");
}

/// Returns a function that makes its calling thread enter this thread's system. Only the model has
/// several systems.
pub fn same_system() -> impl Fn() + Clone + Send + Sync + 'static {
    #[cfg(all(windows, pipe_model))]
    return pipe_server::model::Model::entered();
    #[cfg(not(all(windows, pipe_model)))]
    || {}
}

/// Runs a test with so many seeds, or with those that `PIPE_FAULT_SEEDS` names: `FIRST..LAST`, or a
/// single one. A seed that fails is printed with the command that repeats it.
pub fn with_seeds(test: &str, count: u64, run: impl Fn(u64)) {
    const VARIABLE: &str = "PIPE_FAULT_SEEDS";
    let seeds = match env::var(VARIABLE) {
        Err(_) => 0..count,
        Ok(text) => {
            let parse = |number: &str| {
                number
                    .parse::<u64>()
                    .expect("seeds are FIRST..LAST or SEED")
            };
            match text.split_once("..") {
                Some((first, last)) => parse(first)..parse(last),
                None => parse(&text)..parse(&text) + 1,
            }
        }
    };
    for seed in seeds {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!(
                "seed {seed} fails; repeat it: {VARIABLE}={seed} cargo test --test it {test}"
            );
            panic::resume_unwind(panic);
        }
    }
}

/// Longer than any test takes, even on a busy machine. After this, something hangs. Miri's clock
/// runs fast.
pub const DEADLINE: Duration = Duration::from_secs(if cfg!(miri) { 3600 } else { 60 });

/// Which engine a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    #[cfg(target_os = "linux")]
    Seqpacket,
    /// Seqpacket, on a listening socket that was created elsewhere.
    #[cfg(target_os = "linux")]
    Inherited,
    #[cfg(windows)]
    Overlapped,
    /// With inline completions.
    #[cfg(windows)]
    OverlappedInline,
    #[cfg(windows)]
    Tokio,
}

impl Kind {
    /// The engine's longest message, or a length that is enough for any test.
    pub fn longest(self) -> usize {
        match self {
            // Miri is slow, as are thousands of seeds.
            _ if cfg!(miri) => 9_000,
            _ if cfg!(pipe_model) => 200_000,
            Self::Memory => 16 << 20,
            #[cfg(target_os = "linux")]
            Self::Seqpacket | Self::Inherited => 200_000,
            #[cfg(windows)]
            Self::Overlapped | Self::OverlappedInline => 16 << 20,
            #[cfg(windows)]
            Self::Tokio => 4095,
        }
    }

    /// Binds a pipe. On this thread, [`tuned`] servers are of this kind from now on.
    pub fn bind(self, options: ListenerOptions) -> (PipeListener, Pipe) {
        #[cfg(windows)]
        INLINE.set(self == Self::OverlappedInline);
        if self == Self::Memory {
            let (listener, pipe) = options.bind_memory().unwrap();
            return (listener, Pipe::Memory(pipe));
        }
        let name = unique_name();
        (self.bind_name(options, &name), Pipe::Named(name))
    }

    /// Serves the same name again. The memory engine has no names, so that is another pipe.
    pub fn bind_again(self, options: ListenerOptions, pipe: Pipe) -> (PipeListener, Pipe) {
        let Pipe::Named(name) = pipe else {
            return self.bind(options);
        };
        (self.bind_name(options, &name), Pipe::Named(name))
    }

    #[cfg(windows)]
    fn bind_name(self, options: ListenerOptions, name: &UniqueName) -> PipeListener {
        use pipe_server::os::windows::{Engine, ListenerOptionsExt as _};

        let options = options.engine(match self {
            Self::Tokio => Engine::Tokio,
            _ => Engine::Overlapped,
        });
        options.bind(&name.text).unwrap()
    }

    #[cfg(unix)]
    fn bind_name(self, options: ListenerOptions, name: &UniqueName) -> PipeListener {
        #[cfg(target_os = "linux")]
        if self == Self::Inherited {
            use pipe_server::os::linux::ListenerOptionsExt as _;

            return options.listen_on(listening_socket(name)).unwrap();
        }
        options.bind(&name.text).unwrap()
    }
}

/// A listening socket, as from a service manager. Replaces one of the same name.
#[cfg(target_os = "linux")]
pub fn listening_socket(name: &UniqueName) -> OwnedFd {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
    };

    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    _ = std::fs::remove_file(&name.text);
    bind(&socket, &SocketAddrUnix::new(name.text.as_str()).unwrap()).unwrap();
    listen(&socket, 100).unwrap();
    socket
}

#[cfg(windows)]
thread_local! {
    static INLINE: Cell<bool> = const { Cell::new(false) };
}

/// Sets the options of a server that the kind of this thread's last pipe asks for.
pub fn tuned<H, T>(serving: Serve<H, T>) -> Serve<H, T> {
    #[cfg(windows)]
    return pipe_server::os::windows::ServeExt::inline_completions(serving, INLINE.get());
    #[cfg(not(windows))]
    serving
}

/// A pipe to connect to.
#[derive(Debug)]
pub enum Pipe {
    Memory(MemoryPipe),
    Named(UniqueName),
}

impl Pipe {
    pub async fn connect(&self) -> Client {
        self.connect_with(ClientOptions::new().connect_timeout(DEADLINE))
            .await
    }

    pub async fn connect_with(&self, options: ClientOptions) -> Client {
        self.try_connect(options).await.unwrap()
    }

    pub async fn try_connect(
        &self,
        options: ClientOptions,
    ) -> Result<Client, pipe_server::ConnectError> {
        match self {
            Self::Memory(pipe) => options.connect_memory(pipe).await,
            Self::Named(name) => options.connect(&name.text).await,
        }
    }

    /// A shared client that connects when it is first called.
    pub fn shared(&self, options: &SharedClientOptions) -> SharedClient {
        let client = match self {
            Self::Memory(pipe) => options.connect_memory_lazy(pipe),
            Self::Named(name) => options.connect_lazy(&name.text),
        };
        client.unwrap()
    }
}

/// A name that no other test uses.
#[derive(Debug)]
pub struct UniqueName {
    pub text: String,
    #[cfg(unix)]
    _directory: tempfile::TempDir,
}

pub fn unique_name() -> UniqueName {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let short = format!(
        "pipe-server-test-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    #[cfg(unix)]
    {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join(short).to_str().unwrap().to_owned();
        UniqueName {
            text,
            _directory: directory,
        }
    }
    #[cfg(windows)]
    UniqueName { text: short }
}

/// A message of `length` bytes. Its content depends on `number`.
pub fn message(number: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (number.wrapping_mul(31) ^ index.wrapping_mul(7) ^ (index >> 8)) as u8)
        .collect()
}
