//! `pipe-client --rpc` against a server that answers with what the test says.

use std::future::IntoFuture as _;

use pipe_server::{BoxError, Connection, PipeListener, Shutdown, serve_connections};
use support::{UniqueName, in_time, unique_name};
use tokio::task::spawn_blocking;

use crate::program::{run_client, stderr};

/// Serves one name: each connection's first request is recorded as the answer's `{request}`.
fn serve(name: &UniqueName, answers: &'static [&'static str]) {
    let listener = PipeListener::bind(&name.text).unwrap();
    let serving = serve_connections(listener, move |mut connection: Connection, _: Shutdown| {
        async move {
            let request = connection.recv().await?.unwrap_or_default();
            let request = String::from_utf8(request.to_vec())?;
            for answer in answers {
                connection.send(answer.replace("REQUEST", &request)).await?;
            }
            // Until the client leaves.
            connection.recv().await?;
            Ok::<_, BoxError>(())
        }
    });
    tokio::spawn(serving.into_future());
}

/// The exit code, stdout and stderr of a call.
async fn call(
    answers: &'static [&'static str],
    arguments: &'static [&'static str],
) -> (Option<i32>, String, String) {
    let name = unique_name();
    serve(&name, answers);
    let run = move || run_client(&name, arguments, "");
    let output = spawn_blocking(run).await.unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    (output.status.code(), stdout, stderr(&output))
}

#[tokio::test]
async fn the_request_is_sent_and_its_result_is_printed() {
    in_time(async {
        let echo = &[r#"{"jsonrpc":"2.0","id":1,"result":REQUEST}"#];
        let (code, stdout, _) = call(echo, &["--rpc", r#"a"b"#]).await;
        let request = r#"{"jsonrpc":"2.0","id":1,"method":"a\"b"}"#;
        assert_eq!((code, stdout.trim_end()), (Some(0), request));
        let (code, stdout, _) = call(echo, &["--rpc", "add", "[1, 2.50]"]).await;
        let request = r#"{"jsonrpc":"2.0","id":1,"method":"add","params":[1, 2.50]}"#;
        assert_eq!((code, stdout.trim_end()), (Some(0), request));
    })
    .await;
}

#[tokio::test]
async fn a_notification_before_the_answer_is_skipped() {
    in_time(async {
        let answers = &[
            r#"{"jsonrpc":"2.0","method":"news","params":[1]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":12345678901234567890123}"#,
        ];
        let (code, stdout, _) = call(answers, &["--rpc", "x"]).await;
        assert_eq!(
            (code, stdout.trim_end()),
            (Some(0), "12345678901234567890123")
        );
    })
    .await;
}

#[tokio::test]
async fn an_error_object_is_8() {
    in_time(async {
        let answers = &[
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found","data":"x"}}"#,
        ];
        let (code, stdout, stderr) = call(answers, &["--rpc", "sum", "[]"]).await;
        assert_eq!((code, stdout.as_str()), (Some(8), ""));
        let expected = r#"pipe-client: sum: error -32601: Method not found: "x""#;
        assert_eq!(stderr.trim_end(), expected);
    })
    .await;
}

#[tokio::test]
async fn a_reply_that_is_not_json_rpc_is_1() {
    in_time(async {
        let (code, stdout, stderr) = call(&["hello"], &["--rpc", "sum"]).await;
        assert_eq!((code, stdout.as_str()), (Some(1), ""));
        assert!(
            stderr.contains("sum: the server's message is not JSON-RPC"),
            "{stderr}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_notification_does_not_extend_the_time_for_the_answer() {
    in_time(async {
        let answers = &[r#"{"jsonrpc":"2.0","method":"news","params":[1]}"#];
        let (code, stdout, stderr) = call(answers, &["--rpc", "x", "--timeout", "200ms"]).await;
        assert_eq!((code, stdout.as_str()), (Some(6), ""));
        assert!(stderr.contains("within 200ms: see --timeout"), "{stderr}");
    })
    .await;
}

#[tokio::test]
async fn parameters_that_cannot_be_sent_are_2() {
    in_time(async {
        for (arguments, said) in [
            (&["--rpc", "sum", "1"][..], "neither"),
            (&["--rpc", "sum", "[1"], "EOF"),
            (&["--rpc", "sum", "[1]", "[2]"], "one MESSAGE"),
            (&["--rpc", "sum", "--ping"], "cannot be used with"),
            (&["--subscribe"], "--rpc"),
        ] {
            let (code, _, stderr) = call(&[], arguments).await;
            assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
            assert!(stderr.contains(said), "{arguments:?}: {stderr}");
        }
    })
    .await;
}

#[tokio::test]
async fn notifications_follow_with_subscribe() {
    in_time(async {
        let answers = &[
            r#"{"jsonrpc":"2.0","id":1,"result":"id"}"#,
            r#"{"jsonrpc":"2.0","method":"n","params":{"subscription":"id","result":{"a":1}}}"#,
            r#"{"jsonrpc":"2.0","method":"n","params":[2]}"#,
            r#"{"jsonrpc":"2.0","method":"n","params":{"subscription":"id","error":"over"}}"#,
        ];
        let (code, stdout, stderr) = call(answers, &["--rpc", "watch", "--subscribe"]).await;
        assert_eq!(code, Some(8), "{stderr}");
        let lines: Vec<_> = stdout.lines().collect();
        assert_eq!(lines, [r#""id""#, r#"{"a":1}"#, "[2]"]);
        assert_eq!(stderr.trim_end(), r#"pipe-client: watch: error "over""#);
    })
    .await;
}

/// Ctrl-C, which ends the program as it would have ended by itself.
#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_a_subscription() {
    use std::{
        io::{BufRead as _, BufReader},
        process::Stdio,
    };

    use rustix::process::{Pid, Signal, kill_process};

    in_time(async {
        let name = unique_name();
        serve(
            &name,
            &[
                r#"{"jsonrpc":"2.0","id":1,"result":"id"}"#,
                r#"{"jsonrpc":"2.0","method":"n","params":[1]}"#,
            ],
        );
        let run = move || {
            let mut command = crate::program::client(&name, &["--rpc", "watch", "--subscribe"]);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // Once the notification was printed, the client waits for the next one and for Ctrl-C.
            let printed: Vec<_> = lines.take(2).map(Result::unwrap).collect();
            let status = loop {
                kill_process(Pid::from_child(&child), Signal::INT).unwrap();
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                std::thread::yield_now();
            };
            (printed, status)
        };
        let (printed, status) = spawn_blocking(run).await.unwrap();
        assert_eq!(printed, [r#""id""#, "[1]"]);
        assert_eq!(status.code(), Some(0));
    })
    .await;
}
