//! The contenders' echo servers in Rust: `contender-echo KIND ADDRESS`.

use std::{env, io, process::ExitCode};

#[cfg(unix)]
mod framed;
#[cfg(windows)]
mod interprocess;
#[cfg(feature = "nng")]
mod nng;
#[cfg(windows)]
mod plain_tokio;
#[cfg(feature = "zeromq")]
mod zeromq;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, address] = &arguments[..] else {
        eprintln!("usage: contender-echo KIND ADDRESS");
        return ExitCode::from(2);
    };
    match serve(kind, address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contender-echo: {kind} at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(kind: &str, address: &str) -> Result<(), Box<dyn std::error::Error>> {
    match kind {
        #[cfg(unix)]
        "framed" => Ok(framed::serve(address)?),
        #[cfg(windows)]
        "interprocess-threads" => Ok(interprocess::serve_with_threads(address)?),
        #[cfg(windows)]
        "interprocess-tokio" => Ok(interprocess::serve_with_tokio(address)?),
        #[cfg(feature = "nng")]
        "nng" => Ok(nng::serve(address)?),
        #[cfg(windows)]
        "plain-tokio" => Ok(plain_tokio::serve(address)?),
        #[cfg(feature = "zeromq")]
        "zeromq" => Ok(zeromq::serve(address)?),
        _ => Err("this program was built without that kind of server".into()),
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
