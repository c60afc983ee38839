//! `pipe-client --replay`.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use pipe_server::{Client, Connection, PipeListener};
use support::{UniqueName, in_time, unique_name};
use tokio::task::spawn_blocking;

use crate::{
    dump::DumpFile,
    program::{Server, run_client, stderr},
};

/// Replays a dump as fast as it goes, and returns the exit code, the report and stderr.
fn replay(name: &UniqueName, file: &DumpFile, arguments: &[&str]) -> (Option<i32>, String, String) {
    let replay = ["--replay", file.name(), "--replay-speed", "max"];
    let output = run_client(name, &[&replay, arguments].concat(), "");
    let report = String::from_utf8(output.stdout.clone()).unwrap();
    (output.status.code(), report, stderr(&output))
}

/// The lines of a dump: connection, number, sender and text, a second apart.
fn recorded(messages: &[(u64, u64, &str, &str)]) -> DumpFile {
    let mut lines = String::new();
    for (second, (connection, number, from, text)) in messages.iter().enumerate() {
        let bytes = text.len();
        _ = writeln!(
            lines,
            r#"{{"time":"2026-01-01T00:{:02}:{:02}Z","connection":{connection},"number":{number},"from":"{from}","bytes":{bytes},"text":"{text}"}}"#,
            second / 60,
            second % 60,
        );
    }
    let file = DumpFile::new();
    fs::write(&file.path, lines).unwrap();
    file
}

#[tokio::test]
async fn a_recording_is_repeated_and_another_answer_is_reported() {
    in_time(async {
        let file = DumpFile::new();
        let name = unique_name();
        let dump = ["--dump", file.name(), "--dump-format", "json"];
        let server = Server::start(&name, &[&["--echo"], &dump[..]].concat());
        let mut one = Client::connect(&name.text).await.unwrap();
        let mut two = Client::connect(&name.text).await.unwrap();
        one.call("hello").await.unwrap();
        two.call(&b"\xff\x01"[..]).await.unwrap();
        one.call("grüße\n").await.unwrap();
        file.lines(6).await;
        drop((one, two, server));

        let name = unique_name();
        let _server = Server::start(&name, &["--echo"]);
        let (code, report, said) = replay(&name, &file, &[]);
        assert_eq!(code, Some(0), "{report}{said}");
        assert_eq!(
            report,
            "3 messages sent, connections: 2; messages of the server as recorded: 3, differences: 0\n"
        );

        let name = unique_name();
        let _server = Server::start(&name, &["--reply", "hello"]);
        let (code, report, said) = replay(&name, &file, &[]);
        assert_eq!(code, Some(7), "{report}{said}");
        let lines: Vec<&str> = report.lines().collect();
        let mut differences: Vec<String> = lines[..6].chunks(3).map(|part| part.join("\n")).collect();
        // In the order of the recording, which is that of the server.
        differences.sort();
        assert_eq!(
            differences,
            [
                "connection 1, message 4: byte 1 differs\n-grüße\\n\n+hello",
                "connection 2, message 2: byte 1 differs\n-\\xff\\u{1}\n+hello",
            ]
        );
        assert!(report.ends_with("as recorded: 1, differences: 2\n"), "{report}");
        assert!(said.contains("differ from those in"), "{said}");
    })
    .await;
}

/// Replays a dump to a server whose connections `serve` has, one after the other.
async fn replay_to<S>(
    file: DumpFile,
    arguments: &'static [&'static str],
    serve: S,
) -> (Option<i32>, String, String)
where
    S: AsyncFn(Connection),
{
    let name = unique_name();
    let mut listener = PipeListener::bind(&name.text).unwrap();
    let replaying = spawn_blocking(move || replay(&name, &file, arguments));
    tokio::select! {
        replayed = replaying => replayed.unwrap(),
        () = async {
            loop {
                serve(listener.accept().await.unwrap()).await;
            }
        } => unreachable!(),
    }
}

#[tokio::test]
async fn messages_that_nobody_asked_for_are_awaited_before_the_next_request() {
    in_time(async {
        let file = recorded(&[
            (1, 1, "server", "welcome"),
            (1, 2, "client", "request"),
            (1, 3, "server", "reply"),
            (1, 4, "server", "another"),
        ]);
        let replayed = replay_to(file, &[], async |mut connection| {
            connection.send("welcome").await.unwrap();
            let request = connection.recv().await.unwrap();
            assert_eq!(request.unwrap(), "request");
            for message in ["reply", "another"] {
                connection.send(message).await.unwrap();
            }
            assert!(connection.recv().await.unwrap().is_none());
        });
        let (code, report, said) = replayed.await;
        assert_eq!(code, Some(0), "{report}{said}");
    })
    .await;
}

#[tokio::test]
async fn missing_messages_and_those_too_many_are_differences() {
    in_time(async {
        let messages = [
            (5, 1, "client", "request"),
            (5, 2, "server", "reply"),
            (5, 3, "client", "next"),
            (5, 4, "server", "reply"),
        ];
        let replayed = replay_to(recorded(&messages), &[], async |mut connection| {
            connection.recv().await.unwrap();
        });
        let (code, report, _) = replayed.await;
        assert_eq!(code, Some(7), "{report}");
        let expected = "connection 5, message 2: the server has closed the connection\n-reply\n";
        assert!(report.starts_with(expected), "{report}");
        assert!(report.contains("differences: 1; 2 skipped"), "{report}");
        assert!(report.contains("\n1 message sent,"), "{report}");

        let replayed = replay_to(recorded(&messages[..2]), &[], async |mut connection| {
            connection.recv().await.unwrap();
            for message in ["reply", "once more", "again"] {
                connection.send(message).await.unwrap();
            }
        });
        let (code, report, _) = replayed.await;
        assert_eq!(code, Some(7), "{report}");
        let expected = "connection 5, message 3: it was not recorded\n+once more\n\
                        connection 5, message 4: it was not recorded\n+again\n";
        assert!(report.starts_with(expected), "{report}");

        let silent = replay_to(
            recorded(&messages[..2]),
            &["--timeout", "50ms"],
            async |mut connection| {
                while let Ok(Some(_)) = connection.recv().await {}
            },
        );
        let (code, report, _) = silent.await;
        assert_eq!(code, Some(7), "{report}");
        assert!(report.contains("see --timeout\n-reply\n"), "{report}");
    })
    .await;
}

/// A server that sends much before it reads: the replay receives while it sends.
#[tokio::test]
async fn a_server_that_sends_before_it_reads_does_not_stop_the_replay() {
    in_time(async {
        let long = "x".repeat(60_000);
        let requests = (1..=60).map(|number| (1, number, "client", long.as_str()));
        let replies = (61..=120).map(|number| (1, number, "server", long.as_str()));
        let messages: Vec<_> = requests.chain(replies).collect();
        let replayed = replay_to(recorded(&messages), &[], async |mut connection| {
            for _ in 0..60 {
                connection.send("x".repeat(60_000)).await.unwrap();
            }
            while let Some(message) = connection.recv().await.unwrap() {
                assert_eq!(message.len(), 60_000);
            }
        });
        let (code, report, said) = replayed.await;
        assert_eq!(code, Some(0), "{report}{said}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_never_stops_sending_does_not_hold_up_the_end() {
    in_time(async {
        let messages = [(1, 1, "client", "request"), (1, 2, "server", "tick")];
        let replayed = replay_to(recorded(&messages), &[], async |mut connection| {
            connection.recv().await.unwrap();
            while connection.send("tick").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let (code, report, said) = replayed.await;
        assert_eq!(code, Some(7), "{report}{said}");
        assert!(report.contains("as recorded: 1"), "{report}");
    })
    .await;
}

#[tokio::test]
async fn messages_come_at_the_recorded_speed_or_at_a_multiple() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let begun = Instant::now();
        let replaying = spawn_blocking(move || {
            // A second apart.
            let file = recorded(&[(1, 1, "client", "a"), (1, 2, "client", "b")]);
            run_client(&name, &["--replay", file.name(), "--replay-speed", "4"], "")
        });
        let mut connection = listener.accept().await.unwrap();
        for message in ["a", "b"] {
            assert_eq!(connection.recv().await.unwrap().unwrap(), message);
        }
        assert!(begun.elapsed() >= Duration::from_millis(250));
        drop(connection);
        assert!(replaying.await.unwrap().status.success());
    })
    .await;
}

#[test]
fn what_can_not_be_replayed_is_refused_and_nothing_is_sent() {
    let message = |rest: &str| {
        format!(
            r#"{{"time":"2026-01-01T00:00:00Z","connection":1,"number":1,"from":"client",{rest}}}"#
        )
    };
    for (line, said) in [
        (
            message(r#""bytes":5,"text":"hel","truncated":true"#),
            "line 2 of ",
        ),
        (
            message(r#""bytes":5,"text":"hel","truncated":true"#),
            "cut off, 3 of its 5 bytes are there: record again with --dump-bytes none",
        ),
        (
            r#"{"time":"2026-01-01T00:00:00Z","lost":3}"#.to_owned(),
            "3 messages are missing here",
        ),
        (message(r#""bytes":0,"text":"""#), "is empty"),
        (
            message(r#""bytes":5,"text":"hello""#).replace(r#""number":1"#, r#""number":3"#),
            "message 3 of connection 1 follows message 1",
        ),
        ("2026-01-01 #1 > 5 bytes: hello".to_owned(), "not JSON"),
    ] {
        let file = DumpFile::new();
        let first = message(r#""bytes":1,"text":"a""#);
        fs::write(&file.path, format!("{first}\n{line}\n")).unwrap();
        // Nobody serves it: connecting would say so.
        let (code, report, error) = replay(&unique_name(), &file, &[]);
        assert_eq!((code, report.as_str()), (Some(1), ""), "{error}");
        assert!(error.contains(said), "{error}");
    }

    let file = recorded(&[(1, 1, "client", "hello")]);
    let (_, _, error) = replay(&unique_name(), &file, &["--max-message-size", "4"]);
    assert!(error.contains("see --max-message-size"), "{error}");
    let (code, ..) = replay(&unique_name(), &file, &["another message"]);
    assert_eq!(code, Some(2));
    // Other failures have their own codes.
    let (code, ..) = replay(&unique_name(), &file, &[]);
    assert_eq!(code, Some(3));
}
