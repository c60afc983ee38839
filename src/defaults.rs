//! What applies when nothing else is asked for.

use std::time::Duration;

/// The longest message, in bytes. An engine that carries less has its own limit as the default.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;

/// How many bytes may lie in the pipe each way before a writer waits.
pub const BUFFER_SIZE: usize = 64 * 1024;

/// How many instances wait for clients. Two, so that a client that connects while the next instance is
/// being created finds one.
pub const BACKLOG: usize = 2;

/// How many bytes a server holds for all of its clients together: those of 4,096 clients that have each
/// sent a request of the default limit.
pub const MAX_BUFFERED_BYTES: usize = 256 * 1024 * 1024;

/// How many connections a user other than the server's own and the system's may have: a fourth of the
/// 1,024 files that a process on Linux may usually have open.
pub const MAX_CONNECTIONS_PER_USER: usize = 256;

/// How long a client waits for a busy pipe: as long as the client of Microsoft's sample (*Named Pipe
/// Client*).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a reply waits for a client that does not read. Finite, since two sides that both write first
/// wait for each other.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests in progress may take once a shutdown has begun.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
