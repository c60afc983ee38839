//! The first rule of the contract on random conversations: exactly the messages that were sent are
//! received, whatever their lengths, in both directions at once, and whatever futures the receiver
//! drops.

use std::{
    array,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use pipe_server::{Bytes, ListenerOptions, RecvError, RecvHalf, SendHalf};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner},
};
#[cfg(not(all(windows, pipe_model)))]
use tokio::runtime::Runtime;
use tokio::{task::yield_now, time::timeout};

use support::{Kind, message};

const CASES: u32 = if cfg!(miri) {
    2
} else if cfg!(pipe_model) {
    400
} else {
    24
};

/// The default `max_message_size`.
const LIMIT: usize = 65_536;

/// Longer than any conversation takes, even on a busy machine. After this, something hangs.
const DEADLINE: Duration = Duration::from_secs(if cfg!(miri) { 3600 } else { 10 });

macro_rules! on {
    ($($engine:ident, $kind:ident;)*) => {$(
        #[test]
        fn $engine() {
            every_conversation_arrives_whole_and_in_order(Kind::$kind);
        }
    )*};
}

mod every_conversation_arrives_whole_and_in_order_on {
    use super::*;

    #[cfg(not(all(windows, pipe_model)))]
    on! { memory, Memory; }
    #[cfg(target_os = "linux")]
    on! { seqpacket, Seqpacket; }
    #[cfg(windows)]
    on! { overlapped, Overlapped; }
    #[cfg(all(windows, not(pipe_model)))]
    on! { tokio_pipe, Tokio; }
}

/// One direction: its messages, and how both ends handle them.
#[derive(Clone, Debug)]
struct Flow {
    lengths: Vec<usize>,
    /// How often the sender yields before each message, repeated cyclically.
    pauses: Vec<usize>,
    /// How the receiver gets each message, repeated cyclically.
    habits: Vec<Habit>,
}

#[derive(Clone, Debug)]
enum Habit {
    /// Waits for it.
    Wait,
    /// Polls once, drops the future if it is pending, and yields this many times. At least once:
    /// Tokio's coop budget would otherwise run out, and every poll would be pending.
    Look(usize),
}

fn every_conversation_arrives_whole_and_in_order(kind: Kind) {
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig {
            cases: CASES,
            failure_persistence: None,
            max_shrink_time: 30_000,
            ..ProptestConfig::default()
        },
        rng(),
    );
    let cases = (
        select(&[512, 4096, 65_536][..]),
        flow(kind),
        flow(kind),
        any::<u64>(),
    );
    let result = runner.run(&cases, |(buffer_size, up, down, seed)| {
        run(seed, async move {
            match timeout(DEADLINE, converse(kind, buffer_size, up, down)).await {
                Ok(result) => result,
                Err(_) => Err(TestCaseError::fail("the conversation hangs")),
            }
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[cfg(not(all(windows, pipe_model)))]
fn run<T>(_seed: u64, conversation: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(conversation)
}

#[cfg(all(windows, pipe_model))]
fn run<T>(seed: u64, conversation: impl Future<Output = T>) -> T {
    let options = pipe_server::model::Options::seeded(seed);
    pipe_server::model::run(options, || conversation)
}

/// On the model, failures are reproducible.
fn rng() -> TestRng {
    match cfg!(pipe_model) {
        true => TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        false => TestRng::from_seed(
            RngAlgorithm::ChaCha,
            &array::from_fn::<_, 32, _>(|_| fastrand::u8(..)),
        ),
    }
}

fn flow(kind: Kind) -> impl Strategy<Value = Flow> {
    let longest = kind.longest().min(LIMIT);
    // Lengths at which engines change behavior, and any others.
    let length = prop_oneof![
        2 => Just(1),
        2 => Just(512),
        3 => 4095..=4097_usize,
        3 => (2..=15_usize).prop_map(|pages| pages * 4096),
        1 => Just(LIMIT),
        2 => 1..=LIMIT,
    ]
    .prop_map(move |length| length.min(longest));
    let habit = prop_oneof![Just(Habit::Wait), (1..4_usize).prop_map(Habit::Look)];
    (vec(length, 0..24), vec(0..4_usize, 1..6), vec(habit, 1..6)).prop_map(
        |(lengths, pauses, habits)| Flow {
            lengths,
            pauses,
            habits,
        },
    )
}

async fn converse(kind: Kind, buffer_size: u32, up: Flow, down: Flow) -> TestCaseResult {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new().buffer_size(buffer_size));
    let (client_receiver, client_sender) = pipe.connect().await.into_split();
    let (server_receiver, server_sender) = listener.accept().await.unwrap().into_split();
    let results = tokio::join!(
        tokio::spawn(send(client_sender, up.clone(), 0)),
        tokio::spawn(receive(server_receiver, up, 0)),
        // Different numbers, so that a mix-up of the directions is detected.
        tokio::spawn(send(server_sender, down.clone(), 100)),
        tokio::spawn(receive(client_receiver, down, 100)),
    );
    for result in [results.0, results.1, results.2, results.3] {
        result.unwrap()?;
    }
    Ok(())
}

async fn send(mut sender: SendHalf, flow: Flow, first: usize) -> TestCaseResult {
    let pauses = flow.pauses.iter().cycle();
    for (number, (&length, &pause)) in flow.lengths.iter().zip(pauses).enumerate() {
        yield_times(pause).await;
        let sent = sender.send(message(first + number, length)).await;
        prop_assert!(sent.is_ok(), "message {number} of {length} bytes: {sent:?}");
    }
    let finished = sender.finish().await;
    prop_assert!(finished.is_ok(), "{finished:?}");
    Ok(())
}

async fn receive(mut receiver: RecvHalf, flow: Flow, first: usize) -> TestCaseResult {
    let mut habits = flow.habits.iter().cycle();
    let expected = flow.lengths.iter().map(|&length| Some(length));
    for (number, length) in expected.chain([None]).enumerate() {
        let received = loop {
            match habits.next().expect("at least one habit") {
                Habit::Wait => break receiver.recv().await,
                Habit::Look(yields) => {
                    if let Poll::Ready(received) = look(&mut receiver).await {
                        break received;
                    }
                    yield_times(*yields).await;
                }
            }
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert!(
            received == length.map(|length| message(first + number, length).into()),
            "message {number} of {length:?} bytes arrived as {:?} bytes",
            received.map(|received| received.len())
        );
    }
    Ok(())
}

/// Polls a `recv` once and drops it.
async fn look(receiver: &mut RecvHalf) -> Poll<Result<Option<Bytes>, RecvError>> {
    let mut receiving = pin!(receiver.recv());
    poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx))).await
}

async fn yield_times(times: usize) {
    for _ in 0..times {
        yield_now().await;
    }
}
