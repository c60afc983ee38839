//! As much of a NATS server and its worker as one client needs, for where there is no real one.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

/// NATS's default.
pub const MAX_PAYLOAD: u64 = 1024 * 1024;

/// The connection of one client.
#[derive(Debug)]
pub struct NatsClient {
    pub connection: TcpStream,
    input: BufReader<TcpStream>,
    subscription: String,
    line: String,
}

/// What a client publishes.
#[derive(Debug)]
pub struct Published {
    pub inbox: String,
    pub payload: Vec<u8>,
}

impl NatsClient {
    /// Greets the client.
    pub fn greet(mut connection: TcpStream, max_payload: u64) -> Self {
        let input = BufReader::new(connection.try_clone().unwrap());
        let info = r#"{"server_id":"A","version":"2.10.0","headers":true"#;
        write!(
            connection,
            "INFO {info},\"max_payload\":{max_payload}}}\r\n"
        )
        .unwrap();
        Self {
            connection,
            input,
            subscription: String::new(),
            line: String::new(),
        }
    }

    /// Waits for a request to `subject`. `None` once the client has sent a line that starts with
    /// `last` or has closed the connection.
    pub fn request(&mut self, subject: &str, last: &str) -> Option<Published> {
        loop {
            self.line.clear();
            let length = self.input.read_line(&mut self.line).unwrap_or(0);
            if length == 0 || self.line.starts_with(last) {
                return None;
            }
            match self.line.split_whitespace().collect::<Vec<_>>()[..] {
                ["PING"] => self.connection.write_all(b"PONG\r\n").unwrap(),
                ["SUB", _, number] => number.clone_into(&mut self.subscription),
                ["PUB", to, inbox, length] if to == subject => {
                    let inbox = inbox.to_owned();
                    let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                    self.input.read_exact(&mut payload).unwrap();
                    payload.truncate(payload.len() - 2);
                    return Some(Published { inbox, payload });
                }
                _ => assert!(self.line.starts_with("CONNECT"), "{}", self.line),
            }
        }
    }

    /// Announces a message of `length` bytes. If the first `headers` of them are headers, say so.
    ///
    /// # Errors
    ///
    /// The client may have closed the connection.
    pub fn announce(&mut self, inbox: &str, headers: Option<u64>, length: u64) -> io::Result<()> {
        let id = &self.subscription;
        match headers {
            None => write!(self.connection, "MSG {inbox} {id} {length}\r\n"),
            Some(headers) => write!(self.connection, "HMSG {inbox} {id} {headers} {length}\r\n"),
        }
    }

    /// Replies to a request.
    pub fn reply(&mut self, inbox: &str, payload: &[u8]) {
        self.announce(inbox, None, payload.len() as u64).unwrap();
        self.connection.write_all(payload).unwrap();
        self.connection.write_all(b"\r\n").unwrap();
    }
}

/// Answers each request to `subject` with the request itself, until the client has sent a line that
/// starts with `last` or has closed the connection.
pub fn echo(connection: TcpStream, subject: &str, last: &str) {
    let mut client = NatsClient::greet(connection, MAX_PAYLOAD);
    while let Some(request) = client.request(subject, last) {
        client.reply(&request.inbox, &request.payload);
    }
}
