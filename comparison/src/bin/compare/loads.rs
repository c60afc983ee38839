//! What is measured of each contender.

use crate::System;

#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// In the table's first column.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) unit: Unit,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Echoed requests: their rate, or the 99th percentile of their latency where the unit is that of a time.
    Echo {
        clients: u32,
        depth: u32,
        size: usize,
    },
    /// Echoed requests of 64 bytes, from clients in C that are one blocking thread each: their rate, or
    /// the server's processor time per request where the unit is that of a time. After every `burst`
    /// replies a client sends as many requests.
    Threads {
        clients: u32,
        depth: u32,
        burst: u32,
    },
    /// Clients that connect, have one request answered and close, beside connections that are idle.
    Connect { clients: u32, idle: u32 },
    /// One client that pauses after each reply, beside many at full speed.
    Paced { others: u32, depth: u32 },
    /// Connections that are held open without traffic.
    Idle { connections: u32 },
    /// What a request costs the server process, independent of the machine's other load.
    Cost { event: Event, depth: u32 },
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// By `perf`.
    SystemCalls,
    /// By `perf`.
    ProcessorTime,
    /// By a library that is preloaded into the server.
    Allocations,
}

/// The unit of a figure. Lower is better, except for rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    Microseconds,
    Bytes,
    Calls,
}

impl Unit {
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }

    /// Formats a figure with three digits and its unit.
    pub(crate) fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond => scaled(figure, &[("M", 1e6), ("k", 1e3)], ""),
            Self::Microseconds => scaled(figure, &[(" s", 1e6), (" ms", 1e3)], " µs"),
            Self::Bytes => scaled(figure, &[(" MiB", 1024.0 * 1024.0), (" KiB", 1024.0)], " B"),
            Self::Calls => format!("{figure:.2}"),
        }
    }
}

fn scaled(figure: f64, units: &[(&str, f64)], base: &str) -> String {
    let unit = units.iter().find(|(_, size)| figure.abs() >= *size);
    let (name, figure) = unit.map_or((base, figure), |(name, size)| (*name, figure / size));
    let places = match figure.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{figure:.places$}{name}")
}

impl Load {
    /// The number of connections that grows, in a series of loads.
    pub(crate) fn connections(&self) -> u32 {
        match self.kind {
            Kind::Echo { clients, .. } | Kind::Threads { clients, .. } => clients,
            Kind::Connect { idle, .. } => idle,
            Kind::Idle { connections } => connections,
            Kind::Paced { others, .. } => others,
            Kind::Cost { .. } => 0,
        }
    }

    /// Whether its servers count their allocations.
    pub(crate) fn counts_allocations(&self) -> bool {
        match self.kind {
            Kind::Cost { event, .. } => event == Event::Allocations,
            _ => false,
        }
    }

    /// The length of the longest message, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self.kind {
            Kind::Echo { size, .. } => size,
            _ => SMALL,
        }
    }
}

pub(crate) const SMALL: usize = 64;

/// Series of loads in which only the number of connections grows. A name is that of its series, a colon and the number.
pub(crate) fn growth(system: System) -> Vec<Load> {
    let echo = |name: &str, clients, unit| Load {
        name: name.to_owned(),
        kind: Kind::Echo {
            clients,
            depth: 1,
            size: SMALL,
        },
        unit,
    };
    let rate = |name, clients| echo(name, clients, Unit::PerSecond);
    let latency = |name, clients| echo(name, clients, Unit::Microseconds);
    let connect = |name: &str, idle| Load {
        name: name.to_owned(),
        kind: Kind::Connect { clients: 8, idle },
        unit: Unit::PerSecond,
    };
    let mut loads = vec![
        rate("requests, clients: 1", 1),
        rate("requests, clients: 8", 8),
        rate("requests, clients: 64", 64),
        rate("requests, clients: 512", 512),
        rate("requests, clients: 4,096", 4096),
        latency("p99, clients: 1", 1),
        latency("p99, clients: 8", 8),
        latency("p99, clients: 64", 64),
        latency("p99, clients: 512", 512),
        latency("p99, clients: 4,096", 4096),
        connect("connections, idle ones beside them: 0", 0),
        connect("connections, idle ones beside them: 1,000", 1000),
        connect("connections, idle ones beside them: 10,000", 10_000),
    ];
    // Wine answers a few thousand requests per second: more clients would not all get a reply within a measurement.
    loads.retain(|load| system == System::Linux || load.connections() <= 1000);
    loads
}

/// Loads from clients in C that are one blocking thread each.
fn threads() -> Vec<Load> {
    let figures = [
        ("64 B", Unit::PerSecond),
        ("processor time per request", Unit::Microseconds),
    ];
    let patterns = [
        ("", 1, 1),
        (", depth 16", 16, 1),
        (", bursts of 16", 16, 16),
    ];
    let mut loads = Vec::new();
    for (figure, unit) in figures {
        for (pattern, depth, burst) in patterns {
            for (clients, number) in [("1 client", 1), ("8 clients", 8), ("64 clients", 64)] {
                loads.push(Load {
                    name: format!("{figure}, {clients}{pattern} (blocking threads in C)"),
                    kind: Kind::Threads {
                        clients: number,
                        depth,
                        burst,
                    },
                    unit,
                });
            }
        }
    }
    loads
}

pub(crate) fn of(system: System) -> Vec<Load> {
    let echo = |name: &str, clients, depth, size| Load {
        name: name.to_owned(),
        kind: Kind::Echo {
            clients,
            depth,
            size,
        },
        unit: Unit::PerSecond,
    };
    let idle = |name: &str, connections| Load {
        name: name.to_owned(),
        kind: Kind::Idle { connections },
        unit: Unit::Bytes,
    };
    let mut loads = vec![
        echo("64 B, 1 client", 1, 1, SMALL),
        echo("64 B, 8 clients", 8, 1, SMALL),
        echo("64 B, 64 clients", 64, 1, SMALL),
        echo("64 B, 8 clients, depth 16", 8, 16, SMALL),
        echo("4 KiB, 8 clients", 8, 1, 4 << 10),
        echo("64 KiB, 8 clients", 8, 1, 64 << 10),
        echo("1 MiB, 4 clients", 4, 1, 1 << 20),
        Load {
            name: "connections, 8 clients".to_owned(),
            kind: Kind::Connect {
                clients: 8,
                idle: 0,
            },
            unit: Unit::PerSecond,
        },
        Load {
            name: "p99 of 1 paced client beside 63 at full speed".to_owned(),
            kind: Kind::Paced {
                others: 63,
                depth: 16,
            },
            unit: Unit::Microseconds,
        },
        idle("memory per connection, 1,000 idle", 1000),
    ];
    if system == System::Linux {
        loads.extend(threads());
        // Under Wine 10,000 threads would take 10 GiB.
        loads.push(idle("memory per connection, 10,000 idle", 10_000));
    }
    // Windows has no `perf`.
    if cfg!(windows) {
        return loads;
    }
    use Event::{Allocations, ProcessorTime, SystemCalls};
    let costs: &[_] = match system {
        System::Linux => &[
            ("system calls per request, 8 clients", SystemCalls, 1),
            ("processor time per request, 8 clients", ProcessorTime, 1),
            ("allocations per request, 8 clients", Allocations, 1),
            ("system calls per request, depth 16", SystemCalls, 16),
            ("processor time per request, depth 16", ProcessorTime, 16),
            ("allocations per request, depth 16", Allocations, 16),
        ],
        System::Windows => &[
            ("Linux system calls per request, 8 clients", SystemCalls, 1),
            ("processor time per request, 8 clients", ProcessorTime, 1),
        ],
    };
    loads.extend(costs.iter().map(|&(name, event, depth)| Load {
        name: name.to_owned(),
        kind: Kind::Cost { event, depth },
        unit: match event {
            SystemCalls | Allocations => Unit::Calls,
            ProcessorTime => Unit::Microseconds,
        },
    }));
    loads
}
