//! Windows-specific extensions.

use super::sealed::Sealed;
use crate::{
    access::{Access, CustomAccess},
    client::ClientOptions,
    listener::ListenerOptions,
    peer::Peer,
    serve::{Serve, ServeConnections},
};

pub use crate::engine::Engine;

/// Windows-specific extensions to [`Access`].
///
/// # Examples
///
/// ```
/// use pipe_server::{Access, ListenerOptions, os::windows::AccessExt as _};
///
/// let access = Access::sddl("D:P(A;;GA;;;OW)(A;;0x12019b;;;AU)");
/// let options = ListenerOptions::new().access(access);
/// ```
pub trait AccessExt: Sealed {
    /// The clients that the access list of this security descriptor lets in, in the *Security
    /// Descriptor String Format*.
    ///
    /// The list must let this process create further instances (0x12019f), or `bind` fails. An
    /// entry for `OW`, the owner's rights, does so for any user.
    fn sddl(descriptor: impl Into<String>) -> Self;

    /// The security descriptor, if there is one.
    fn as_sddl(&self) -> Option<&str>;
}

impl AccessExt for Access {
    fn sddl(descriptor: impl Into<String>) -> Self {
        CustomAccess::sddl(descriptor.into())
    }

    fn as_sddl(&self) -> Option<&str> {
        match self {
            Self::Custom(access) => Some(&access.sddl),
            Self::CurrentUser | Self::Everyone => None,
        }
    }
}

/// Windows-specific extensions to [`ListenerOptions`].
pub trait ListenerOptionsExt: Sealed {
    /// The I/O that the connections use. Default: [`Engine::Auto`].
    #[must_use]
    fn engine(self, engine: Engine) -> Self;

    /// Whether clients on other machines may connect. Default: no (`PIPE_REJECT_REMOTE_CLIENTS`).
    #[must_use]
    fn allow_remote(self, allow: bool) -> Self;
}

impl ListenerOptionsExt for ListenerOptions {
    fn engine(mut self, engine: Engine) -> Self {
        self.for_engine.engine = engine;
        self
    }

    fn allow_remote(mut self, allow: bool) -> Self {
        self.for_engine.allow_remote = allow;
        self
    }
}

/// Windows-specific extensions to [`ClientOptions`].
pub trait ClientOptionsExt: Sealed {
    /// Whether to connect to a pipe on another machine, `\\HOST\pipe\NAME`. Default: no.
    ///
    /// Connecting sends this user's credentials to HOST over SMB, whatever HOST is. Check names
    /// from outside before turning this on.
    #[must_use]
    fn allow_remote(self, allow: bool) -> Self;
}

impl ClientOptionsExt for ClientOptions {
    fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }
}

/// Windows-specific extensions to [`Peer`].
pub trait PeerExt: Sealed {
    /// The process's Terminal Services session id.
    fn session_id(&self) -> u32;
}

impl PeerExt for Peer {
    fn session_id(&self) -> u32 {
        self.session_id
    }
}

/// Windows-specific extensions to [`Serve`] and [`ServeConnections`].
pub trait ServeExt: Sealed {
    /// Whether the thread that completes a connection's I/O also runs the connection's task: for
    /// [`serve`](crate::serve()) the handler, `authorize` and `on_connect`. Default: no. The
    /// `tokio` engine ignores this.
    ///
    /// Usually such a thread wakes the connection's task, and a worker of the runtime polls the
    /// task. With this option the thread polls it, so that a message does not wake a second
    /// thread. Other wake-ups, such as a timer's or another task's, still go through the
    /// runtime, and so does a client that has sent many requests ahead, so that it does not
    /// hold a thread.
    ///
    /// The option is safe for code that never blocks and does not compute for long. All pipes of
    /// the process, clients and servers, share two of these threads for each processor, and at
    /// least four. While code holds all of them, no pipe of the process receives anything. Code
    /// that blocks belongs into [`spawn_blocking`](tokio::task::spawn_blocking), or this option
    /// has to stay off.
    ///
    /// On such a thread:
    ///
    /// - the runtime's context is there: `tokio::spawn`, timers and Tokio's I/O work as usual;
    /// - [`tokio::task::try_id`] returns `None`, and `block_in_place` blocks the thread without a
    ///   replacement;
    /// - dropping the runtime does not wait for code that is being polled. A graceful shutdown
    ///   does.
    ///
    /// Kestrel has the same option as `UnsafePreferInlineScheduling`, and .NET's sockets as
    /// `DOTNET_SYSTEM_NET_SOCKETS_INLINE_COMPLETIONS`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::future::IntoFuture;
    /// use pipe_server::{Bytes, Client, PipeListener, os::windows::ServeExt, serve};
    ///
    /// let name = format!("inline-example-{}", std::process::id());
    /// let listener = PipeListener::bind(&name)?;
    /// let serving = serve(listener, |request: Bytes| async move { request }).inline_completions(true);
    /// tokio::spawn(serving.into_future());
    ///
    /// let mut client = Client::connect(&name).await?;
    /// assert_eq!(client.call("hello").await?, "hello");
    /// # Ok(()) }
    /// ```
    fn inline_completions(self, inline: bool) -> Self;
}

impl<H, T, S> ServeExt for Serve<H, T, S> {
    fn inline_completions(mut self, inline: bool) -> Self {
        self.server.inline_completions = inline;
        self
    }
}

impl<F> ServeExt for ServeConnections<F> {
    fn inline_completions(mut self, inline: bool) -> Self {
        self.server.inline_completions = inline;
        self
    }
}
