//! A proxy that counts connections and statements, by the wire protocol.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Postgres,
    Mysql,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    statements: AtomicU64,
}

/// Listens on a port of 127.0.0.1 until the process ends.
#[derive(Debug)]
pub(crate) struct WireCounter {
    port: u16,
    counts: Arc<Counts>,
}

impl WireCounter {
    /// A proxy to the server of a URL.
    pub(crate) fn to(url: &str) -> Self {
        let protocol = match url.starts_with("postgres") {
            true => Protocol::Postgres,
            false => Protocol::Mysql,
        };
        let server = host_and_port(url)
            .expect("a URL with host and port")
            .to_owned();
        let counts = Arc::new(Counts::default());
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            crate::drive::current_thread().block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0))
                    .await
                    .expect("a port is free");
                let _ = sender.send(listener.local_addr().expect("it is bound").port());
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), protocol, Arc::clone(&shared)));
                }
            });
        });
        Self {
            port: receiver.recv().expect("it listens"),
            counts,
        }
    }

    /// The URL of the server, through this proxy.
    pub(crate) fn url(&self, of: &str) -> String {
        let server = host_and_port(of).expect("a URL with host and port");
        of.replacen(server, &format!("127.0.0.1:{}", self.port), 1)
    }

    /// The connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// The statements so far, prepared or not.
    pub(crate) fn statements(&self) -> u64 {
        self.counts.statements.load(Ordering::Relaxed)
    }
}

/// `host:port` of a URL.
fn host_and_port(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    Some(
        authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host),
    )
}

async fn pass(client: TcpStream, server: String, protocol: Protocol, counts: Arc<Counts>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    counts.connections.fetch_add(1, Ordering::Relaxed);
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async {
        let (mut reader, mut buffer) = (Reader::new(protocol), vec![0; 65536]);
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            counts
                .statements
                .fetch_add(reader.read(&buffer[..n]), Ordering::Relaxed);
            if to_server.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Splits the bytes of a client into messages.
struct Reader {
    protocol: Protocol,
    buffer: Vec<u8>,
    /// Whether the first message has passed: PostgreSQL's has no type byte.
    greeted: bool,
}

impl Reader {
    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            buffer: Vec::new(),
            greeted: protocol == Protocol::Mysql,
        }
    }

    /// Reads some bytes; how many statements they complete.
    fn read(&mut self, bytes: &[u8]) -> u64 {
        self.buffer.extend_from_slice(bytes);
        let mut found = 0;
        while let Some(length) = self.length().filter(|length| *length <= self.buffer.len()) {
            found += u64::from(self.is_statement());
            self.greeted = true;
            self.buffer.drain(..length);
        }
        found
    }

    /// The length of the next message, with its header.
    fn length(&self) -> Option<usize> {
        let at =
            |from: usize| -> Option<[u8; 4]> { self.buffer.get(from..from + 4)?.try_into().ok() };
        match self.protocol {
            Protocol::Mysql => {
                let [low, middle, high, _] = at(0)?;
                Some(4 + u32::from_le_bytes([low, middle, high, 0]) as usize)
            }
            Protocol::Postgres if self.greeted => Some(1 + u32::from_be_bytes(at(1)?) as usize),
            Protocol::Postgres => Some(u32::from_be_bytes(at(0)?) as usize),
        }
    }

    fn is_statement(&self) -> bool {
        match self.protocol {
            // The first packet of a command has the number 0. 3 is COM_QUERY, 23 COM_STMT_EXECUTE.
            Protocol::Mysql => matches!(self.buffer[..], [_, _, _, 0, 3 | 23, ..]),
            Protocol::Postgres => self.greeted && matches!(self.buffer[0], b'B' | b'Q'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(letter: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[letter][..], &length, body].concat()
    }

    #[test]
    fn statements_are_counted_however_they_are_cut() {
        let mut sent = vec![0, 0, 0, 8, 0, 3, 0, 0];
        sent.extend(message(b'P', b"s0\0UPDATE t SET token = token + 1\0\0\0"));
        sent.extend(message(b'S', b""));
        for _ in 0..2 {
            sent.extend(message(b'B', b"\0s0\0\0\0\0\0"));
            sent.extend(message(b'E', b"\0\0\0\0\0"));
        }
        sent.extend(message(b'Q', b"SELECT 1\0"));
        for size in [1, 7, sent.len()] {
            let mut reader = Reader::new(Protocol::Postgres);
            let found: u64 = sent.chunks(size).map(|part| reader.read(part)).sum();
            assert_eq!(found, 3);
        }
    }

    #[test]
    fn packets_of_mysql_that_are_no_statements_do_not_count() {
        let mut reader = Reader::new(Protocol::Mysql);
        // Login, COM_STMT_PREPARE, COM_STMT_EXECUTE, COM_STMT_CLOSE.
        let sent = [
            &[2, 0, 0, 1, 3, 3][..],
            &[2, 0, 0, 0, 22, b'x'],
            &[2, 0, 0, 0, 23, 1],
            &[1, 0, 0, 0, 25],
        ]
        .concat();
        assert_eq!(reader.read(&sent), 1);
    }

    #[test]
    fn a_url_names_host_and_port() {
        let url = "postgres://me@127.0.0.1:15000/db?x=y";
        assert_eq!(host_and_port(url), Some("127.0.0.1:15000"));
        assert_eq!(host_and_port("sqlite"), None);
    }
}
