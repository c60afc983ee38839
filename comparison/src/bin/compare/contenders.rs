//! The servers that are compared.

use crate::System;

/// A server, and how to load it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contender {
    /// In the table's heading.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) program: Program,
    /// `{name}`, `{address}`, `{longest}`, `{threads}` and `{port_threads}` are replaced.
    pub(crate) arguments: &'static [&'static str],
    pub(crate) client: Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Compared with all others.
    Ours,
    /// pipe-server with other options.
    AlsoOurs,
    /// As fast as the system allows: a server without anything but the system calls.
    Limit,
    /// A limit on a stream socket: what message boundaries cost in the kernel. Ours is not compared with it.
    StreamLimit,
    /// What a user would choose instead.
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Cargo(&'static str),
    C(&'static str),
    Go(&'static str),
    /// A script. Its path is that in the repository, where the comparison runs.
    Node(&'static str),
}

/// Which client speaks its protocol. Clients differ only in the transport.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// `pipe-bench`: a message pipe.
    Pipe,
    /// `contender-load` with this transport.
    Other(&'static str),
}

impl Contender {
    pub(crate) fn is_ours(&self) -> bool {
        self.role == Role::Ours
    }

    /// The type of its socket, if `socket-load` can load it.
    pub(crate) fn socket_type(&self) -> Option<&'static str> {
        match self.client {
            Client::Pipe => Some("seqpacket"),
            Client::Other("framed") => Some("stream"),
            Client::Other(_) => None,
        }
    }
}

/// Ours is first.
pub(crate) fn of(system: System) -> Vec<Contender> {
    match system {
        System::Linux => LINUX.into(),
        System::Windows => WINDOWS.into(),
    }
}

/// Ours, the plain Tokio loop, and that loop with what the contract demands added step by step.
pub(crate) fn steps() -> Vec<Contender> {
    let ours = LINUX.into_iter().filter(Contender::is_ours);
    ours.chain(STEPS).collect()
}

const LINUX: [Contender; 10] = [
    Contender {
        name: "pipe-server",
        role: Role::Ours,
        program: Program::Cargo("pipe-server"),
        arguments: &[
            "--quiet",
            "--pipe-name",
            "{address}",
            "--echo",
            "--max-message-size",
            "{longest}",
        ],
        client: Client::Pipe,
    },
    Contender {
        name: "C epoll, thread per core",
        role: Role::Limit,
        program: Program::C("epoll"),
        arguments: &["{address}", "{longest}", "{threads}"],
        client: Client::Pipe,
    },
    Contender {
        name: "C epoll, one thread",
        role: Role::Limit,
        program: Program::C("epoll"),
        arguments: &["{address}", "{longest}", "1"],
        client: Client::Pipe,
    },
    Contender {
        name: "C epoll on a stream, thread per core",
        role: Role::StreamLimit,
        program: Program::C("stream-epoll"),
        arguments: &["{address}", "{longest}", "{threads}"],
        client: Client::Other("framed"),
    },
    Contender {
        name: "C, thread per client",
        role: Role::Other,
        program: Program::C("seqpacket-threads"),
        arguments: &["{address}", "{longest}"],
        client: Client::Pipe,
    },
    plain_tokio(
        "plain Tokio loop",
        &["plain-tokio", "{address}", "{longest}"],
    ),
    Contender {
        name: "Go",
        role: Role::Other,
        program: Program::Go("go-echo"),
        arguments: &["{address}", "{longest}"],
        client: Client::Pipe,
    },
    Contender {
        name: "Tokio UnixStream",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["framed", "{address}"],
        client: Client::Other("framed"),
    },
    Contender {
        name: "ZeroMQ",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["zeromq", "{address}"],
        client: Client::Other("zeromq"),
    },
    Contender {
        name: "nng",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["nng", "{address}"],
        client: Client::Other("nng"),
    },
];

const STEPS: [Contender; 8] = [
    plain_tokio(
        "plain Tokio loop",
        &["plain-tokio", "{address}", "{longest}"],
    ),
    plain_tokio(
        "+ messages",
        &["plain-tokio", "{address}", "{longest}", "messages"],
    ),
    plain_tokio(
        "+ panics",
        &["plain-tokio", "{address}", "{longest}", "panics"],
    ),
    plain_tokio(
        "+ write timeout",
        &["plain-tokio", "{address}", "{longest}", "write-timeout"],
    ),
    plain_tokio(
        "+ shutdown",
        &["plain-tokio", "{address}", "{longest}", "shutdown"],
    ),
    plain_tokio(
        "+ bytes in hand",
        &["plain-tokio", "{address}", "{longest}", "bytes-in-hand"],
    ),
    plain_tokio(
        "+ turns",
        &["plain-tokio", "{address}", "{longest}", "turns"],
    ),
    plain_tokio(
        "+ figures",
        &["plain-tokio", "{address}", "{longest}", "figures"],
    ),
];

const fn plain_tokio(name: &'static str, arguments: &'static [&'static str]) -> Contender {
    Contender {
        name,
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments,
        client: Client::Pipe,
    }
}

const WINDOWS: [Contender; 9] = [
    Contender {
        name: "pipe-server",
        role: Role::Ours,
        program: Program::Cargo("pipe-server"),
        arguments: &[
            "--quiet",
            "--pipe-name",
            "{name}",
            "--echo",
            "--engine",
            "overlapped",
            "--max-message-size",
            "{longest}",
        ],
        client: Client::Pipe,
    },
    Contender {
        name: "pipe-server, engine tokio",
        role: Role::AlsoOurs,
        program: Program::Cargo("pipe-server"),
        // Its message limit is fixed.
        arguments: &[
            "--quiet",
            "--pipe-name",
            "{name}",
            "--echo",
            "--engine",
            "tokio",
        ],
        client: Client::Pipe,
    },
    Contender {
        name: "C completion port",
        role: Role::Limit,
        program: Program::C("completion-port"),
        arguments: &["{name}", "{longest}", "{port_threads}"],
        client: Client::Pipe,
    },
    Contender {
        name: "C, thread per client",
        role: Role::Other,
        program: Program::C("pipe-threads"),
        arguments: &["{name}", "{longest}"],
        client: Client::Pipe,
    },
    Contender {
        name: "plain Tokio loop",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["plain-tokio", "{name}"],
        client: Client::Pipe,
    },
    Contender {
        name: "Go, go-winio",
        role: Role::Other,
        program: Program::Go("go-echo"),
        arguments: &["{name}", "{longest}"],
        client: Client::Pipe,
    },
    Contender {
        name: "interprocess, Tokio",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["interprocess-tokio", "{name}"],
        client: Client::Other("framed"),
    },
    Contender {
        name: "interprocess, threads",
        role: Role::Other,
        program: Program::Cargo("contender-echo"),
        arguments: &["interprocess-threads", "{name}"],
        client: Client::Other("framed"),
    },
    Contender {
        name: "Node.js",
        role: Role::Other,
        program: Program::Node("comparison/node/echo.js"),
        arguments: &["{name}"],
        client: Client::Other("framed"),
    },
];
