//! How a load is measured.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    Options, System,
    client::{self, Client},
    contenders::Contender,
    loads::{Event, Kind, Load, SMALL, Unit},
    programs::Programs,
    server::Server,
};

/// The figures of several rounds, or why there are none.
pub(crate) type Figures = Result<Vec<f64>, String>;

/// How long the clients at full speed run before the paced one starts.
const HEAD_START: Duration = Duration::from_millis(300);

/// How long the clients in C run before they are measured.
const WARM_UP: Duration = Duration::from_millis(100);

/// The number of requests to average the cost over: about a second's work.
fn counted(system: System) -> u32 {
    match system {
        System::Linux => 50_000,
        System::Windows => 4_000,
    }
}

/// Measures the contenders in turns, starting each round with a different one. A contender that fails once is
/// left out.
pub(crate) fn measure(
    load: &Load,
    contenders: &[Contender],
    programs: &Programs,
    options: &Options,
) -> Vec<Figures> {
    // All servers run all the time; an idle one costs nothing.
    let mut servers: Vec<_> = contenders
        .iter()
        .map(|contender| {
            let server = Server::start(contender, load, programs)?;
            verify(load, contender, programs)?;
            Ok::<_, String>(server)
        })
        .collect();
    let mut figures: Vec<Figures> = vec![Ok(Vec::new()); contenders.len()];
    let rounds = match load.kind {
        // These have little noise.
        Kind::Idle { .. } => 1,
        Kind::Cost { .. } => options.rounds.min(3),
        _ => options.rounds,
    };
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let contender = &contenders[index];
            let figure = match &mut servers[index] {
                Ok(server) => one(load, contender, server, programs, options),
                Err(reason) => Err(reason.clone()),
            };
            match (figure, &mut figures[index]) {
                (Ok(figure), Ok(figures)) => figures.push(figure),
                (Err(reason), figures @ Ok(_)) => {
                    let reason = programs.without_names(&reason, contender);
                    eprintln!("  {}: left out: {reason}", contender.name);
                    *figures = Err(reason.clone());
                    // Kills the server, so that it can't disturb the others.
                    servers[index] = Err(reason);
                }
                (_, Err(_)) => {}
            }
        }
    }
    figures
}

/// Checks that every reply equals its request. A server that fails this is not measured.
fn verify(load: &Load, contender: &Contender, programs: &Programs) -> Result<(), String> {
    let (clients, depth) = match load.kind {
        Kind::Echo { clients, depth, .. } | Kind::Threads { clients, depth, .. } => {
            (clients, depth)
        }
        _ => (1, 1),
    };
    let requests = (2 * clients * depth).max(20);
    let mut command = programs.client(contender);
    command
        .args(["--verify", "echo", "--warm-up", "0", "--timeout", "10s"])
        .args(["--clients", &clients.to_string()])
        .args(["--depth", &depth.to_string()])
        .args(["--requests", &requests.to_string()])
        .args(["--size", &load.size().to_string()]);
    client::figure(&mut command, "messages").map(drop)
}

/// One measurement.
fn one(
    load: &Load,
    contender: &Contender,
    server: &mut Server,
    programs: &Programs,
    options: &Options,
) -> Result<f64, String> {
    let mut client = programs.client(contender);
    let duration = |time: Duration| format!("{}ms", time.as_millis());
    match load.kind {
        Kind::Echo {
            clients,
            depth,
            size,
        } => {
            client
                .args(["--clients", &clients.to_string()])
                .args(["--depth", &depth.to_string()])
                .args(["--size", &size.to_string()])
                .args([
                    "--duration",
                    &duration(options.duration),
                    "--warm-up",
                    "100ms",
                ]);
            let name = match load.unit {
                Unit::Microseconds => "p99_us",
                _ => "messages_per_second",
            };
            client::figure(&mut client, name)
        }
        Kind::Threads {
            clients,
            depth,
            burst,
        } => {
            let mut threads = programs.threads(contender, server.process())?;
            threads
                .args([clients, depth, burst].map(|number| number.to_string()))
                .arg(SMALL.to_string())
                .args([WARM_UP, options.duration].map(|time| time.as_millis().to_string()));
            let name = match load.unit {
                Unit::Microseconds => "processor_us_per_message",
                _ => "messages_per_second",
            };
            client::figure(&mut threads, name)
        }
        Kind::Connect { clients, idle } => {
            let _idle = match idle {
                0 => None,
                _ => Some(hold(idle, programs.client(contender))?),
            };
            client
                .args(["--connect-rate", "--clients", &clients.to_string()])
                .args([
                    "--duration",
                    &duration(options.duration),
                    "--warm-up",
                    "100ms",
                ]);
            client::figure(&mut client, "connections_per_second")
        }
        Kind::Paced {
            others: clients,
            depth,
        } => {
            client.args(["--clients", "1", "--pause", "1ms"]).args([
                "--duration",
                &duration(2 * options.duration),
                "--warm-up",
                "50",
            ]);
            let mut others = programs.client(contender);
            others
                .args(["--clients", &clients.to_string()])
                .args(["--depth", &depth.to_string()])
                .args(["--duration", "1min", "--warm-up", "0"]);
            let _others = Client::start(&mut others)?;
            thread::sleep(HEAD_START);
            client::figure(&mut client, "p99_us")
        }
        Kind::Idle { connections } => {
            // A new server has no memory from earlier rounds to reuse.
            server.restart(contender, load, programs)?;
            // What a server allocates for its first client and keeps is not counted.
            let mut first = programs.client(contender);
            first.args(["--clients", "1", "--requests", "10", "--warm-up", "0"]);
            client::figure(&mut first, "messages")?;
            let before = server.memory()?;
            let _holding = hold(connections, client)?;
            let with = server.memory()?;
            Ok((with as f64 - before as f64) / f64::from(connections))
        }
        Kind::Cost { event, depth } => {
            let requests = counted(options.system);
            let client = |requests: u32| {
                let mut client = programs.client(contender);
                client
                    .args(["--clients", "8", "--warm-up", "0"])
                    .args(["--depth", &depth.to_string()])
                    .args(["--requests", &requests.to_string()]);
                client
            };
            let perf = |name| perf(name, server, &client(requests), programs);
            let cost = match event {
                Event::SystemCalls => perf("raw_syscalls:sys_enter")?,
                // In milliseconds.
                Event::ProcessorTime => perf("task-clock")? * 1e3,
                Event::Allocations => {
                    // What connections cost is the same in both, so that it is not counted.
                    let less = allocations(contender, client(requests), programs)?;
                    let more = allocations(contender, client(2 * requests), programs)?;
                    // Nearly the same: what the table would show as 0.00 is none.
                    let none = f64::from(requests) * 0.005;
                    if more - less < none { 0.0 } else { more - less }
                }
            };
            Ok(cost / f64::from(requests))
        }
    }
}

/// Connects as many clients, which stay until the returned value is dropped.
fn hold(connections: u32, mut client: Command) -> Result<Client, String> {
    client.args(["--idle", &connections.to_string(), "--duration", "1min"]);
    let mut holding = Client::start(&mut client)?;
    holding.measured()?;
    Ok(holding)
}

/// The server's allocations while the client runs.
fn allocations(
    contender: &Contender,
    mut client: Command,
    programs: &Programs,
) -> Result<f64, String> {
    let before = programs.allocations(contender)?;
    client::figure(&mut client, "messages")?;
    let after = programs.allocations(contender)?;
    Ok((after - before) as f64)
}

/// What the server spends while the client runs, counted by `perf` without slowing it down.
fn perf(name: &str, server: &Server, client: &Command, programs: &Programs) -> Result<f64, String> {
    let cannot = || format!("perf can't count {name} on this machine");
    let status = Command::new("perf")
        .args(["stat", "-x,", "-e", name, "-o"])
        .arg(programs.log())
        .args(["-p", &server.process().to_string(), "--"])
        .arg(client.get_program())
        .args(client.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(cannot());
    }
    let counted = fs::read_to_string(programs.log()).unwrap_or_default();
    let line = counted
        .lines()
        .find(|line| line.contains(name))
        .ok_or_else(cannot)?;
    let number = line
        .split(',')
        .next()
        .and_then(|number| number.parse::<f64>().ok());
    number.ok_or_else(cannot)
}
