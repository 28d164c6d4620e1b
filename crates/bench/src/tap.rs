//! What passes between a client and its server, counted by the protocol: connections, statements, bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use testkit::time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Which protocol is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Postgres,
    Mysql,
}

/// Since the start, or the latest [`Tap::reset`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    /// Statements carried out, prepared or not.
    pub(crate) statements: u64,
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// PostgreSQL: by what they are.
    pub(crate) kinds: HashMap<&'static str, u64>,
    /// How long a client waited for answers, from the first byte that it sent to the last of the answer.
    pub(crate) waited: Duration,
    /// Of the exchange under way: when it began, and when the latest byte of its answer came.
    exchange: Option<(Instant, Option<Instant>)>,
}

impl Counts {
    fn asked(&mut self, now: Instant) {
        if let Some((_, None)) = self.exchange {
            return;
        }
        self.settle();
        self.exchange = Some((now, None));
    }

    fn answered(&mut self, now: Instant) {
        if let Some((_, last)) = &mut self.exchange {
            *last = Some(now);
        }
    }

    /// What has been answered is over.
    fn settle(&mut self) {
        if let Some((began, Some(last))) = self.exchange {
            self.waited += last - began;
            self.exchange = None;
        }
    }
}

/// Listens on a port of 127.0.0.1 until the process ends.
#[derive(Debug)]
pub(crate) struct Tap {
    port: u16,
    counts: Arc<Mutex<Counts>>,
}

impl Tap {
    /// In front of the server that a URL names.
    pub(crate) fn to(url: &str) -> Self {
        let speaks = match url.starts_with("postgres") {
            true => Speaks::Postgres,
            false => Speaks::Mysql,
        };
        let server = place(url).expect("a URL with host and port").to_owned();
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (tell, hear) = mpsc::channel();
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            let runtime = crate::floors::runtime();
            runtime.block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0))
                    .await
                    .expect("a port is free");
                let _ = tell.send(listener.local_addr().expect("it is bound").port());
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), speaks, Arc::clone(&shared)));
                }
            });
        });
        Self {
            port: hear.recv().expect("it listens"),
            counts,
        }
    }

    /// The same URL, through here.
    pub(crate) fn url(&self, of: &str) -> String {
        let server = place(of).expect("a URL with host and port");
        of.replacen(server, &format!("127.0.0.1:{}", self.port), 1)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.settle();
        counts.clone()
    }

    pub(crate) fn reset(&self) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = Counts::default();
    }
}

/// `host:port` of a URL.
fn place(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?']).next()?;
    Some(
        authority
            .rsplit_once('@')
            .map_or(authority, |(_, place)| place),
    )
}

async fn pass(client: TcpStream, server: String, speaks: Speaks, counts: Arc<Mutex<Counts>>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let count = |change: &dyn Fn(&mut Counts)| {
        change(&mut counts.lock().unwrap_or_else(PoisonError::into_inner));
    };
    count(&|counts| counts.connections += 1);
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async {
        let (mut reader, mut buffer) = (Reader::new(speaks), vec![0; 65536]);
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            let messages = reader.read(&buffer[..n]);
            count(&|counts| {
                counts.asked(time::now());
                counts.up += n as u64;
                for kind in &messages {
                    counts.statements += 1;
                    *counts.kinds.entry(kind).or_default() += 1;
                }
            });
            if to_server.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            count(&|counts| {
                counts.answered(time::now());
                counts.down += n as u64;
            });
            if to_client.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Cuts what a client sends into its messages.
struct Reader {
    speaks: Speaks,
    buffer: Vec<u8>,
    /// PostgreSQL's first message has no letter.
    greeted: bool,
    /// By the names that the client gave them.
    statements: HashMap<Vec<u8>, &'static str>,
}

impl Reader {
    fn new(speaks: Speaks) -> Self {
        Self {
            speaks,
            buffer: Vec::new(),
            greeted: false,
            statements: HashMap::new(),
        }
    }

    /// A word for each statement that these bytes complete.
    fn read(&mut self, bytes: &[u8]) -> Vec<&'static str> {
        self.buffer.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(length) = self.length() {
            if self.buffer.len() < length {
                break;
            }
            let message: Vec<u8> = self.buffer.drain(..length).collect();
            found.extend(self.statement(&message));
        }
        found
    }

    /// Of the next message, its head included.
    fn length(&self) -> Option<usize> {
        let at = |from: usize| {
            self.buffer
                .get(from..from + 4)
                .and_then(|four| four.try_into().ok())
        };
        match self.speaks {
            Speaks::Mysql => {
                let head: [u8; 4] = at(0)?;
                Some(4 + u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize)
            }
            Speaks::Postgres if self.greeted => Some(1 + u32::from_be_bytes(at(1)?) as usize),
            Speaks::Postgres => Some(u32::from_be_bytes(at(0)?) as usize),
        }
    }

    fn statement(&mut self, message: &[u8]) -> Option<&'static str> {
        match self.speaks {
            // The first packet of a command has the number 0. 3 is a query, 23 a prepared one.
            Speaks::Mysql => matches!(message, [_, _, _, 0, 3 | 23, ..]).then_some("statement"),
            Speaks::Postgres if !self.greeted => {
                self.greeted = true;
                None
            }
            Speaks::Postgres => {
                let mut words = message.get(5..)?.split(|byte| *byte == 0);
                match message.first()? {
                    b'P' => {
                        let name = words.next()?.to_vec();
                        self.statements.insert(name, kind(words.next()?));
                        None
                    }
                    b'B' => {
                        let name = words.nth(1)?;
                        Some(self.statements.get(name).copied().unwrap_or("other"))
                    }
                    b'Q' => Some(kind(words.next()?)),
                    _ => None,
                }
            }
        }
    }
}

/// What a statement of the library is for.
fn kind(sql: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(sql);
    let has = |word: &str| text.contains(word);
    if has("token + 1") {
        "acquire"
    } else if has("grant_id = NULL") {
        "release"
    } else if has("GREATEST") && has("expires_at") && has("granted_until =") {
        "renew"
    } else if has("NOTIFY") || has("pg_notify") {
        "ring"
    } else if has("waiting_until") && has("UPDATE") {
        "say that somebody waits"
    } else if has("INSERT") {
        "make a row"
    } else {
        "other"
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
            let mut reader = Reader::new(Speaks::Postgres);
            let found: Vec<_> = sent
                .chunks(size)
                .flat_map(|part| reader.read(part))
                .collect();
            assert_eq!(found, ["acquire", "acquire", "other"]);
        }
    }

    #[test]
    fn an_answer_is_waited_for_from_the_first_byte_asked_to_the_last_answered() {
        let (mut counts, start) = (Counts::default(), time::now());
        let at = |ms| start + Duration::from_millis(ms);
        // A question in two pieces, an answer in two, a pause, and the next.
        counts.asked(at(0));
        counts.asked(at(2));
        counts.answered(at(5));
        counts.answered(at(9));
        counts.asked(at(1_000));
        counts.answered(at(1_001));
        counts.settle();
        assert_eq!(counts.waited, Duration::from_millis(10));
    }

    #[test]
    fn packets_of_mysql_that_are_no_statements_do_not_count() {
        let mut reader = Reader::new(Speaks::Mysql);
        // Logging in, preparing, executing, closing.
        let sent = [
            &[2, 0, 0, 1, 3, 3][..],
            &[2, 0, 0, 0, 22, b'x'],
            &[2, 0, 0, 0, 23, 1],
            &[1, 0, 0, 0, 25],
        ]
        .concat();
        assert_eq!(reader.read(&sent).len(), 1);
    }

    #[test]
    fn a_url_leads_through_the_tap() {
        assert_eq!(
            place("postgres://me@127.0.0.1:15000/db?x=y"),
            Some("127.0.0.1:15000")
        );
        assert_eq!(place("sqlite"), None);
    }
}
