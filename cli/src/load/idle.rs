//! The cost to the server of connections that are idle.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};

use super::{
    conversation::content, memory, options::Options, report::Report, run::unwind,
    transport::Transport, visits::visit,
};
use crate::exit::Failure;

/// How long the server may take to settle before its memory is read.
const SETTLING: Duration = Duration::from_millis(300);

/// Holds `connections`, and reports once they are established.
pub(crate) async fn hold<T: Transport>(
    options: &Options,
    transport: T,
    connections: u32,
) -> Result<(), Failure> {
    let content = content(options.size);
    // What the server allocates once, for its first client, is not counted.
    drop(visit(&transport, content).await?);
    let before = read_memory(options).await?;

    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..options.clients {
        let transport = transport.clone();
        let share =
            connections / options.clients + u32::from(client < connections % options.clients);
        tasks.spawn(async move {
            let mut held = Vec::with_capacity(share as usize);
            for _ in 0..share {
                let (sender, receiver, _) = visit(&transport, content).await?;
                held.push((sender, receiver));
            }
            Ok(held)
        });
    }
    let mut held = Vec::with_capacity(options.clients as usize);
    while let Some(connected) = tasks.join_next().await {
        held.push(unwind::<Result<_, Failure>>(connected)?);
    }
    let time = begun.elapsed();
    let with = read_memory(options).await?;

    let mut report = Report::new();
    report.rate("connections", connections.into(), time);
    if let Some((before, with)) = before.zip(with) {
        report.memory("memory before", before as f64);
        report.memory("memory with them", with as f64);
        let each = (with as f64 - before as f64) / f64::from(connections);
        report.memory("memory per connection", each);
    }
    report.print(options.json)?;

    let over = async {
        match options.duration {
            Some(time) => sleep(time).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = over => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    drop(held);
    Ok(())
}

async fn read_memory(options: &Options) -> Result<Option<u64>, Failure> {
    let Some(process) = options.pid else {
        return Ok(None);
    };
    sleep(SETTLING).await;
    let memory = memory::resident(process).map_err(|error| {
        Failure::new(format!(
            "can't read the memory of process {process}: {error}; check --pid"
        ))
    })?;
    Ok(Some(memory))
}
