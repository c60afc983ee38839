//! The contenders' echo servers in Rust: `contender-echo KIND ADDRESS [LONGEST [STEP]]`. LONGEST is the length of the longest
//! message, for the kinds that have to know it, and STEP the last of the steps that are added to the plain Tokio loop.

use std::{env, io, process::ExitCode};

#[cfg(target_os = "linux")]
mod contract_linux;
#[cfg(unix)]
mod framed;
#[cfg(windows)]
mod interprocess;
#[cfg(feature = "nng")]
mod nng;
#[cfg(target_os = "linux")]
mod plain_tokio_linux;
#[cfg(windows)]
mod plain_tokio_windows;
#[cfg(feature = "zeromq")]
mod zeromq;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, address, options @ ..] = &arguments[..] else {
        eprintln!("usage: contender-echo KIND ADDRESS [LONGEST [STEP]]");
        return ExitCode::from(2);
    };
    match serve(kind, address, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contender-echo: {kind} at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(kind: &str, address: &str, options: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    match (kind, options) {
        #[cfg(unix)]
        ("framed", []) => Ok(framed::serve(address)?),
        #[cfg(windows)]
        ("interprocess-threads", []) => Ok(interprocess::serve_with_threads(address)?),
        #[cfg(windows)]
        ("interprocess-tokio", []) => Ok(interprocess::serve_with_tokio(address)?),
        #[cfg(feature = "nng")]
        ("nng", []) => Ok(nng::serve(address)?),
        #[cfg(target_os = "linux")]
        ("plain-tokio", [longest]) => {
            let echo = plain_tokio_linux::echo;
            Ok(plain_tokio_linux::serve(address, longest.parse()?, echo)?)
        }
        #[cfg(target_os = "linux")]
        ("plain-tokio", [longest, last_step]) => {
            contract_linux::serve(address, longest.parse()?, last_step)
        }
        #[cfg(windows)]
        ("plain-tokio", []) => Ok(plain_tokio_windows::serve(address)?),
        #[cfg(feature = "zeromq")]
        ("zeromq", []) => Ok(zeromq::serve(address)?),
        _ => Err(
            "this program was built without that kind of server, or it takes other arguments"
                .into(),
        ),
    }
}

/// Prints the same line as pipe-server when clients can connect.
fn announce(address: &str) -> io::Result<()> {
    use io::Write as _;

    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// The runtime that `#[tokio::main]` builds.
#[cfg(any(unix, windows))]
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new()
}
