//! As much of a NATS server and its worker as one client needs, for where there is no real one.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

/// Answers each request to `subject` with the request itself, until the client has sent a line that
/// starts with `last` or has closed the connection.
pub fn echo(mut connection: TcpStream, subject: &str, last: &str) {
    let mut input = BufReader::new(connection.try_clone().unwrap());
    let info = r#"{"server_id":"A","version":"2.10.0","headers":true,"max_payload":1048576}"#;
    write!(connection, "INFO {info}\r\n").unwrap();
    let (mut id, mut line) = (String::new(), String::new());
    while input.read_line(&mut line).unwrap_or(0) > 0 && !line.starts_with(last) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["PING"] => connection.write_all(b"PONG\r\n").unwrap(),
            ["SUB", _, number] => number.clone_into(&mut id),
            ["PUB", to, inbox, length] if to == subject => {
                let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                input.read_exact(&mut payload).unwrap();
                write!(connection, "MSG {inbox} {id} {length}\r\n").unwrap();
                connection.write_all(&payload).unwrap();
            }
            _ => assert!(line.starts_with("CONNECT"), "{line}"),
        }
        line.clear();
    }
}
