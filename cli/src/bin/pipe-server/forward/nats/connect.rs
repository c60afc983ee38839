//! One attempt to connect to a NATS server.

use std::{fmt, sync::Arc, time::Duration};

use rustls_native_certs::load_native_certs;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::{TcpStream, lookup_host},
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use url::{Host, Url};

use super::{
    protocol::{NatsError, Operation, Receiver, ServerInfo},
    target::{Credentials, DEFAULT_PORT, Target},
};

/// How long connecting to one address of the host may take.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// The host and the port of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NatsAddress {
    /// An IPv6 address without brackets.
    host: String,
    port: u16,
}

impl NatsAddress {
    pub(super) fn new(url: &Url) -> Option<Self> {
        let host = match url.host()? {
            Host::Ipv6(address) => address.to_string(),
            host => host.to_string(),
        };
        let port = url.port().unwrap_or(DEFAULT_PORT);
        Some(Self { host, port })
    }

    /// Parses what a server says of another one of its cluster.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::new(&Url::parse(&format!("nats://{text}")).ok()?)
    }
}

pub(super) trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Stream for S {}

/// A connection whose server has accepted the credentials.
#[derive(Debug)]
pub(super) struct NatsConnection {
    pub(super) receiver: Receiver<ReadHalf<Box<dyn Stream>>>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    pub(super) info: ServerInfo,
}

impl NatsConnection {
    pub(super) async fn open(target: &Target, address: &NatsAddress) -> Result<Self, NatsError> {
        let stream = open(address).await?;
        stream.set_nodelay(true)?;
        let (receiver, mut writer) = split(Box::new(stream) as Box<dyn Stream>);
        let mut receiver = Receiver::new(receiver);
        let info = match receiver.operation().await? {
            Operation::Info(info) => info,
            Operation::Error(text) => return Err(refused(&text)),
            other => return Err(NatsError::Syntax(format!("{other:?} before INFO"))),
        };
        // For the servers that this one names, too.
        if target.tls || info.tls_required {
            let stream = receiver.into_unbuffered()?.unsplit(writer);
            let stream = encrypt(stream, &address.host).await?;
            let (read, write) = split(stream);
            (receiver, writer) = (Receiver::new(read), write);
        }
        let mut connection = Self {
            receiver,
            writer,
            info,
        };
        connection.log_in(&target.credentials).await?;
        Ok(connection)
    }

    async fn log_in(&mut self, credentials: &Credentials) -> Result<(), NatsError> {
        let connect = format!("CONNECT {}\r\nPING\r\n", connect_options(credentials));
        self.send(connect.as_bytes()).await?;
        loop {
            match self.receiver.operation().await? {
                Operation::Pong => return Ok(()),
                Operation::Ping => self.send(b"PONG\r\n").await?,
                Operation::Ok => {}
                Operation::Info(info) => self.info = info,
                Operation::Error(text) => return Err(refused(&text)),
                Operation::Message(head) => return Err(NatsError::Syntax(format!("{head:?}"))),
            }
        }
    }

    async fn send(&mut self, text: &[u8]) -> Result<(), NatsError> {
        self.writer.write_all(text).await?;
        Ok(self.writer.flush().await?)
    }
}

fn connect_options(credentials: &Credentials) -> serde_json::Value {
    let mut options = json!({
        "verbose": false,
        "pedantic": false,
        "name": "pipe-server",
        "lang": "rust",
        "version": env!("CARGO_PKG_VERSION"),
        // Servers may send INFO again.
        "protocol": 1,
        "headers": true,
        "no_responders": true,
    });
    match credentials {
        Credentials::None => {}
        Credentials::Token(token) => options["auth_token"] = json!(token),
        Credentials::Password { user, password } => {
            options["user"] = json!(user);
            options["pass"] = json!(password);
        }
    }
    options
}

fn refused(text: &str) -> NatsError {
    NatsError::Refused(text.escape_debug().to_string())
}

async fn open(address: &NatsAddress) -> Result<TcpStream, NatsError> {
    let mut problem = NatsError::Silent(ADDRESS_TIMEOUT);
    for address in lookup_host((&*address.host, address.port)).await? {
        match timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => problem = error.into(),
            Err(_) => {}
        }
    }
    Err(problem)
}

/// Checks that the certificate is valid for `host`, too.
async fn encrypt(stream: Box<dyn Stream>, host: &str) -> Result<Box<dyn Stream>, NatsError> {
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| NatsError::Tls(format!("TLS: {host}: {error}")))?;
    let config = spawn_blocking(tls_config).await;
    let config = config.map_err(|error| NatsError::Tls(error.to_string()))??;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
    Ok(Box::new(stream.await?))
}

fn tls_config() -> Result<ClientConfig, NatsError> {
    let found = load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let problem = found.errors.first().map(|error| format!(": {error}"));
        return Err(NatsError::Tls(format!(
            "the system trusts no authority for certificates{}",
            problem.unwrap_or_default()
        )));
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| NatsError::Tls(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_host_and_port() {
        let address = |host: &str, port| NatsAddress {
            host: host.to_owned(),
            port,
        };
        assert_eq!(NatsAddress::parse("a.b:1"), Some(address("a.b", 1)));
        assert_eq!(NatsAddress::parse("[::1]:2"), Some(address("::1", 2)));
        assert_eq!(
            NatsAddress::parse("10.0.0.1"),
            Some(address("10.0.0.1", DEFAULT_PORT))
        );
        assert_eq!(NatsAddress::parse(""), None);
    }

    #[test]
    fn credentials_are_part_of_the_options() {
        let password = Credentials::Password {
            user: "ann".to_owned(),
            password: "\"".to_owned(),
        };
        let options = connect_options(&password).to_string();
        assert!(options.contains(r#""pass":"\"""#) && options.contains(r#""user":"ann""#));
        let token = Credentials::Token("t".to_owned());
        assert!(
            connect_options(&token)
                .to_string()
                .contains(r#""auth_token":"t""#)
        );
    }
}
