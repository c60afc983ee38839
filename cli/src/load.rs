//! The load tool, whatever carries its messages: `pipe-bench` puts a message pipe under it, and
//! `comparison/` other carriers.

use tokio::runtime::Builder;

use self::report::Report;
pub use self::{
    options::Options,
    pipe::Pipe,
    transport::{Receiver, Sender, Transport},
};
use crate::{exit::Failure, runtime};

mod conversation;
mod idle;
pub mod memory;
mod options;
mod pipe;
mod progress;
mod report;
mod run;
mod transport;
mod visits;

/// Does what `options` ask for and prints what came out.
pub fn run<T: Transport>(options: &Options, transport: T) -> Result<(), Failure> {
    options.check()?;
    raise_open_files();
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(options.threads());
    runtime::run(builder, T::IO_DRIVER, async {
        if let Some(connections) = options.idle {
            return idle::hold(options, transport, connections).await;
        }
        let report: Report = match options.connect_rate {
            true => visits::measure(options, transport).await?,
            false => conversation::measure(options, transport).await?,
        };
        report.print(options.json)
    })?
}

/// Lets this process have as many connections as the system allows: the usual limit is 1,024 files, low
/// for the sake of programs that use `select`. Without success the system's own error comes in time.
#[cfg(target_os = "linux")]
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(not(target_os = "linux"))]
fn raise_open_files() {}
