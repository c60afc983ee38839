//! Compares pipe-server with what a user would choose instead. The contenders take turns, their clients differ only
//! in the transport, and the figures are medians of several rounds. `comparison/compare-linux` and
//! `comparison/compare-windows` build what it needs and run it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{contenders::Contender, loads::Load, programs::Programs, results::Results};

mod client;
mod contenders;
mod growth;
mod loads;
mod measure;
mod page;
mod picture;
mod programs;
mod results;
mod server;
mod table;

/// Runs a comparison and writes a table and a picture of it.
#[derive(Debug, Parser)]
struct Options {
    /// System whose contenders to compare
    #[arg(value_enum)]
    system: System,

    /// Directory of the programs built by cargo
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,

    /// Directory of the programs built by other compilers
    #[arg(long, value_name = "DIR")]
    other_programs: PathBuf,

    /// Node.js, if there is one
    #[arg(long, value_name = "PROGRAM")]
    node: Option<PathBuf>,

    /// Program that runs the others, for Windows programs on Linux
    #[arg(long, value_name = "PROGRAM")]
    runner: Option<PathBuf>,

    /// System and machine, for the table's heading
    #[arg(long, value_name = "TEXT")]
    heading: String,

    /// Directory of performance.md and of the picture
    #[arg(long, value_name = "DIR")]
    docs: PathBuf,

    /// Number of rounds
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: usize,

    /// Duration of each measurement
    #[arg(long, value_name = "TIME", default_value = "600ms", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Measure growing numbers of clients instead of the usual loads
    #[arg(long)]
    growth: bool,

    /// Compare with the plain Tokio loop alone, to which what the contract demands is added step by
    /// step; does not change the docs. Only on Linux
    #[arg(long, conflicts_with = "growth")]
    steps: bool,

    /// One short round, to check that everything works; does not change the docs
    #[arg(long)]
    quick: bool,

    /// Only loads whose name contains TEXT; does not change the docs. May be repeated
    #[arg(long = "load", value_name = "TEXT")]
    loads: Vec<String>,

    /// Only contenders whose name contains TEXT, and ours; does not change the docs. May be repeated
    #[arg(long = "contender", value_name = "TEXT")]
    contenders: Vec<String>,
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
    warn_if_busy();
    let wanted = |name: &str, patterns: &[String]| {
        patterns.is_empty() || patterns.iter().any(|pattern| name.contains(pattern))
    };
    let contenders = match (options.steps, options.system) {
        (false, system) => contenders::of(system),
        (true, System::Linux) => contenders::steps(),
        (true, System::Windows) => return Err("--steps is for Linux only".into()),
    };
    let contenders: Vec<Contender> = contenders
        .into_iter()
        .filter(|contender| contender.is_ours() || wanted(contender.name, &options.contenders))
        .collect();
    let loads = match options.growth {
        true => loads::growth(options.system),
        false => loads::of(options.system),
    };
    let loads: Vec<Load> = loads
        .into_iter()
        .filter(|load| wanted(&load.name, &options.loads))
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
    println!("{}", table::ratios(&results));
    if !options.changes_docs() {
        return Ok(());
    }
    let picture = match options.growth {
        true => growth::picture(&results, options),
        false => picture::picture(&results, options),
    };
    page::write(options, &table, &picture)?;
    Ok(())
}

impl Options {
    /// Whether the docs get the results.
    fn changes_docs(&self) -> bool {
        let is_complete = self.loads.is_empty() && self.contenders.is_empty();
        is_complete && !self.quick && !self.steps
    }

    /// The part of the page that it writes.
    fn part(&self) -> String {
        let system = self.system.name();
        match self.growth {
            true => format!("{system}-growth"),
            false => system.to_owned(),
        }
    }
}

impl System {
    /// For names of files and parts of the page.
    fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
        }
    }

    /// For people. The heading says whether it was Windows or Wine.
    fn title(self) -> &'static str {
        match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows pipes",
        }
    }
}

/// Other processes' use of the processor distorts the figures.
fn warn_if_busy() {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let average = average.split(' ').next().and_then(|load| load.parse().ok());
    if let Some(load @ 0.5..) = average {
        eprintln!(
            "compare: this machine is busy (load average {load}): rates and latencies will be noisy"
        );
    }
}

/// Servers and clients inherit the limit; 10,000 connections exceed the usual one.
#[cfg(unix)]
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(not(unix))]
fn raise_open_files() {}
