//! The default values of the options.

use std::time::Duration;

/// The longest message, in bytes. An engine with a lower limit uses that limit.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;

/// How many bytes the pipe buffers in each direction before a writer waits.
pub const BUFFER_SIZE: u32 = 64 * 1024;

/// How many instances wait for clients. Two, so that a client that connects while the next instance
/// is being created still finds one.
pub const BACKLOG: usize = 2;

/// How many requests of one client are in the handler at once. One, since a client may rely on an
/// earlier request being done before the next one begins.
pub const CONCURRENCY: usize = 1;

/// How many bytes a server buffers for all its clients together: those of 4,096 clients that have
/// each sent a request of the default limit.
pub const MAX_BUFFERED_BYTES: usize = 256 * 1024 * 1024;

/// How many connections a user other than the server's own and the system's may have: a quarter of
/// the 1,024 files that a process on Linux may usually have open. With fewer than 512 instances,
/// half of them.
pub const MAX_CONNECTIONS_PER_USER: usize = 256;

/// How long a client waits for a busy pipe: as long as Microsoft's sample client (*Named Pipe
/// Client*).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a call of a client may take. Finite, because otherwise nobody would notice a server
/// that is stuck.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How many calls of a shared client are in flight at the same time: enough to keep a server busy,
/// and at most 16 MiB of requests of the default limit.
pub const MAX_IN_FLIGHT: usize = 256;

/// How long a reply waits for a client that does not read. Finite, because two sides that both
/// write first would wait for each other forever.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests in flight may take once a graceful shutdown has begun.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
