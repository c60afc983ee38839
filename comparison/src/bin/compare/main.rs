//! Compares pipe-server with what a user would take instead: every contender in turns, by the same clients, and
//! medians of several rounds. `comparison/compare-linux` and `comparison/compare-windows` build what it needs and
//! run it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{contenders::Contender, loads::Load, programs::Programs, results::Results};

mod client;
mod contenders;
mod loads;
mod measure;
mod page;
mod picture;
mod programs;
mod results;
mod server;
mod table;

/// Runs a comparison and writes it down as a table and a picture.
#[derive(Debug, Parser)]
struct Options {
    /// Whose contenders to compare
    #[arg(value_enum)]
    system: System,

    /// Directory of the programs that cargo has built
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,

    /// Directory of the programs that the C compiler has built
    #[arg(long, value_name = "DIR")]
    c_programs: PathBuf,

    /// Program that runs the others, for Windows programs on Linux
    #[arg(long, value_name = "PROGRAM")]
    runner: Option<PathBuf>,

    /// What the measurements are from, for the table's heading
    #[arg(long, value_name = "TEXT")]
    heading: String,

    /// Directory of performance.md and of the picture
    #[arg(long, value_name = "DIR")]
    docs: PathBuf,

    /// How many rounds
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: usize,

    /// How long each measurement takes
    #[arg(long, value_name = "TIME", default_value = "600ms", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// One short round, to see that everything works; the docs stay as they are
    #[arg(long)]
    quick: bool,

    /// Only loads whose name contains TEXT; the docs stay as they are
    #[arg(long, value_name = "TEXT")]
    load: Option<String>,

    /// Only contenders whose name contains TEXT, and ours; the docs stay as they are
    #[arg(long, value_name = "TEXT")]
    contender: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    Linux,
    Windows,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        options.rounds = 1;
        options.duration = options.duration.min(Duration::from_millis(200));
    }
    match compare(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    raise_open_files();
    warn_of_company();
    let wanted = |name: &str, pattern: &Option<String>| match pattern {
        Some(pattern) => name.contains(pattern.as_str()),
        None => true,
    };
    let contenders: Vec<Contender> = contenders::of(options.system)
        .into_iter()
        .filter(|contender| contender.is_ours() || wanted(contender.name, &options.contender))
        .collect();
    let loads: Vec<Load> = loads::of(options.system)
        .into_iter()
        .filter(|load| wanted(load.name, &options.load))
        .collect();
    let programs = Programs::new(options)?;

    let mut results = Results::new(&contenders);
    for load in &loads {
        eprintln!("{}", load.name);
        results.add(
            load,
            measure::measure(load, &contenders, &programs, options),
        );
    }

    let table = table::table(&results, options);
    println!("{table}");
    if options.quick || options.load.is_some() || options.contender.is_some() {
        return Ok(());
    }
    let picture = picture::picture(&results, options);
    page::write(options, &table, &picture)?;
    Ok(())
}

impl System {
    /// In file names, and in the marks of its part of the page.
    fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
        }
    }

    /// For people. Whose Windows it was, the heading says.
    fn title(self) -> &'static str {
        match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows pipes",
        }
    }
}

/// Whoever else uses the processor is measured too.
fn warn_of_company() {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let average = average.split(' ').next().and_then(|load| load.parse().ok());
    if let Some(load @ 0.5..) = average {
        eprintln!(
            "compare: this machine is busy (load average {load}): rates and latencies will be noisy"
        );
    }
}

/// Servers and clients inherit the limit; 10,000 connections are over the usual one.
#[cfg(unix)]
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(not(unix))]
fn raise_open_files() {}
