//! Every fault of the proxy, with a server that repeats what it receives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::{Proxy, time};

/// Long enough for anything that happens at all, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Long enough to believe that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

/// A server that repeats and records what it receives.
struct Echo {
    port: u16,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, received) = (stream.unwrap(), Arc::clone(&all));
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        received.lock().unwrap().extend(&buffer[..length]);
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, received }
    }

    fn receives(&self, what: &str) -> bool {
        time::wait_until(TIMEOUT, || self.received_text() == what)
    }

    fn received_text(&self) -> String {
        String::from_utf8(self.received.lock().unwrap().clone()).unwrap()
    }
}

fn start() -> (Echo, Proxy, TcpStream) {
    let echo = Echo::start();
    let proxy = Proxy::to("127.0.0.1", echo.port);
    let client = connect(&proxy);
    (echo, proxy, client)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

fn expect_reply(client: &mut TcpStream, what: &str) {
    let mut buffer = vec![0; what.len()];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(String::from_utf8(buffer).unwrap(), what);
}

fn expect_no_reply(client: &mut TcpStream) {
    client.set_read_timeout(Some(A_WHILE)).unwrap();
    let error = client.read(&mut [0]).expect_err("nothing may come");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
        "{error}"
    );
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
}

/// The end of the connection, by a close or a reset.
fn is_closed(client: &mut TcpStream) {
    match client.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0, "something came instead of the end"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

#[test]
fn a_proxy_forwards_and_counts() {
    let (_echo, proxy, mut client) = start();
    proxy.watch_for("UPDATE");
    for what in ["UPDATE 1", "SELECT", "an UPDATE too"] {
        client.write_all(what.as_bytes()).unwrap();
        expect_reply(&mut client, what);
    }
    let counts = proxy.counts();
    assert_eq!(
        (counts.connections, counts.chunks_up, counts.chunks_down),
        (1, 3, 3)
    );
    assert_eq!((counts.bytes_up, counts.bytes_down), (27, 27));
    assert_eq!(proxy.count("UPDATE"), 2);

    proxy.reset_counts();
    assert_eq!(
        (proxy.count("UPDATE"), proxy.counts()),
        (0, Default::default())
    );
}

#[test]
fn a_stall_holds_everything_and_loses_nothing() {
    let (echo, proxy, mut client) = start();
    client.write_all(b"a").unwrap();
    expect_reply(&mut client, "a");

    proxy.stall();
    client.write_all(b"b").unwrap();
    let mut late = connect(&proxy);
    late.write_all(b"").unwrap();
    expect_no_reply(&mut client);
    assert_eq!(echo.received_text(), "a");

    proxy.resume();
    expect_reply(&mut client, "b");
    late.write_all(b"c").unwrap();
    expect_reply(&mut late, "c");
}

#[test]
fn stalled_replies_are_to_requests_that_arrived() {
    let (echo, proxy, mut client) = start();
    proxy.stall_replies();
    client.write_all(b"a").unwrap();
    assert!(echo.receives("a"));
    expect_no_reply(&mut client);
    proxy.resume();
    expect_reply(&mut client, "a");
}

#[test]
fn a_cut_closes_what_is_open_and_nothing_else() {
    let (_echo, proxy, mut client) = start();
    let mut other = connect(&proxy);
    for client in [&mut client, &mut other] {
        client.write_all(b"a").unwrap();
        expect_reply(client, "a");
    }
    assert_eq!(proxy.open_connections(), 2);
    proxy.cut();
    assert_eq!(proxy.open_connections(), 0);
    is_closed(&mut client);
    is_closed(&mut other);

    let mut client = connect(&proxy);
    client.write_all(b"b").unwrap();
    expect_reply(&mut client, "b");
}

#[test]
fn a_stalled_connection_can_be_cut() {
    let (_echo, proxy, mut client) = start();
    proxy.stall();
    client.write_all(b"a").unwrap();
    expect_no_reply(&mut client);
    proxy.cut();
    is_closed(&mut client);
}

#[test]
fn refusing_affects_new_connections_only() {
    let (_echo, proxy, mut client) = start();
    client.write_all(b"a").unwrap();
    expect_reply(&mut client, "a");

    proxy.refuse(true);
    is_closed(&mut connect(&proxy));
    client.write_all(b"b").unwrap();
    expect_reply(&mut client, "b");
    assert_eq!(proxy.counts().connections, 1);

    proxy.refuse(false);
    let mut client = connect(&proxy);
    client.write_all(b"c").unwrap();
    expect_reply(&mut client, "c");
}

#[test]
fn a_lost_reply_is_to_a_request_that_arrived() {
    let (echo, proxy, mut client) = start();
    proxy.lose_next_reply("renew");
    client.write_all(b"take ").unwrap();
    expect_reply(&mut client, "take ");
    assert_eq!(proxy.faults_hit(), 0);

    client.write_all(b"renew ").unwrap();
    is_closed(&mut client);
    assert_eq!(proxy.faults_hit(), 1);
    assert_eq!(echo.received_text(), "take renew ");

    let mut client = connect(&proxy);
    client.write_all(b"renew ").unwrap();
    expect_reply(&mut client, "renew ");
    assert_eq!(proxy.faults_hit(), 1, "one loss was asked for");
}

#[test]
fn a_lost_request_never_arrives() {
    let (echo, proxy, mut client) = start();
    proxy.lose_next_request("renew");
    client.write_all(b"take ").unwrap();
    expect_reply(&mut client, "take ");
    client.write_all(b"renew ").unwrap();
    is_closed(&mut client);
    assert_eq!(proxy.faults_hit(), 1);
    assert_eq!(echo.received_text(), "take ");
}

#[test]
fn a_close_by_either_side_reaches_the_other() {
    let (_echo, proxy, mut client) = start();
    client.write_all(b"a").unwrap();
    expect_reply(&mut client, "a");
    // Echo ends when the client has sent all, and so the proxy ends too.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    is_closed(&mut client);
    assert!(time::wait_until(TIMEOUT, || proxy.open_connections() == 0));
}

#[test]
fn without_a_server_connections_are_closed() {
    // No server listens on this port.
    let proxy = Proxy::to("127.0.0.1", 1);
    is_closed(&mut connect(&proxy));
}

#[test]
fn a_url_is_changed_in_its_host_and_port_only() {
    let proxy = Proxy::to("127.0.0.1", 1);
    let port = proxy.port();
    for (url, through) in [
        (
            "mysql://root@127.0.0.1:3306/db",
            format!("mysql://root@127.0.0.1:{port}/db"),
        ),
        (
            "postgres://u:p%40@db:5432/x?a=b@c",
            format!("postgres://u:p%40@127.0.0.1:{port}/x?a=b@c"),
        ),
        (
            "postgres://db?a=/b",
            format!("postgres://127.0.0.1:{port}?a=/b"),
        ),
    ] {
        assert_eq!(proxy.url(url), through);
    }
}

#[test]
fn a_dropped_proxy_closes_its_connections() {
    let (_echo, proxy, mut client) = start();
    client.write_all(b"a").unwrap();
    expect_reply(&mut client, "a");
    drop(proxy);
    is_closed(&mut client);
}
