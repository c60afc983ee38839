//! The load tool, independent of what carries its messages: `pipe-bench` uses a message pipe,
//! `comparison/` other transports.

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
mod latencies;
pub mod memory;
mod options;
mod pipe;
mod progress;
mod report;
mod run;
mod transport;
mod visits;

/// Runs the load that `options` describe and prints the results.
pub fn run<T: Transport>(options: &Options, transport: T) -> Result<(), Failure> {
    options.check()?;
    // It is usually 1,024, which is low for the sake of programs that use select(2). If it can't be
    // raised, the system's own error is reported later.
    #[cfg(target_os = "linux")]
    let _ = crate::open_files::raise();
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(options.threads());
    runtime::run_on_threads(builder, T::IO_DRIVER, async {
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
