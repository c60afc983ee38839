//! One run of the program, whatever carries the messages.

use tokio::runtime::Builder;

use crate::{
    conversation, exit::Failure, idle, options::Options, report::Report, runtime,
    transport::Transport, visits,
};

/// Does what `options` ask for and prints what came out.
pub(crate) fn run<T: Transport>(options: &Options, transport: T) -> Result<(), Failure> {
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
