//! HAProxy in front of the nodes of a cluster: it forwards connections without reading SQL.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::nodes::{NODES, Nodes};
use crate::programs::{find_binary, require};
use crate::server::{Server, User, on_a_free_port};
use crate::sql::database_of;
use crate::time;

/// How long HAProxy may take to answer on its own socket.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a new connection is assigned to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// To each in turn.
    RoundRobin,
    /// To the first node that is up.
    First,
}

/// A HAProxy for one test, in TCP mode: it checks each node several times a second, and closes the
/// connections of a node that does not answer.
#[derive(Debug)]
pub struct HaProxy {
    server: Server,
    port: u16,
}

impl HaProxy {
    /// Starts one in front of all nodes. `None`, and a printed line, if there is none on this
    /// machine.
    ///
    /// # Panics
    ///
    /// If it is there and does not start, with the end of its log; or if it is not there and
    /// `haproxy` is [required](require).
    pub fn start(cluster: &Nodes, balance: Balance) -> Option<Self> {
        let program = require("haproxy", "haproxy", find_binary("haproxy", &[]))?;
        let mut server = Server::new("haproxy", User::for_server("haproxy"), Signal::TERM);
        let file = server.dir().join("conf");
        let control = control_of(&server);
        let args = ["-db", "-f"].map(String::from);
        let port = on_a_free_port(|port| {
            std::fs::write(&file, configuration(cluster, balance, port, &control))
                .expect("the directory can be written to");
            server.give(&file);
            let mut args = args.to_vec();
            args.push(file.display().to_string());
            server.launch(&program, &args, "KILL", || {
                TcpStream::connect(("127.0.0.1", port)).is_ok() && control.exists()
            })
        });
        Some(Self { server, port })
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database, given by name or URL, as the superuser.
    pub fn url(&self, database: &str) -> String {
        format!(
            "mysql://root@127.0.0.1:{}/{}",
            self.port,
            database_of(database)
        )
    }

    /// The server itself: its process id and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// How many connections go to each node just now.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn connections(&self) -> [usize; NODES] {
        let table = self.ask("show stat -1 4 -1");
        let mut lines = table.lines();
        let header = lines.next().unwrap_or_default().trim_start_matches("# ");
        let column = |name| header.split(',').position(|column| column == name);
        let (name, current) = column("svname")
            .zip(column("scur"))
            .unwrap_or_else(|| panic!("no table: {table}"));
        let mut counts = [0; NODES];
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let node = fields.get(name).and_then(|name| name.strip_prefix('n'));
            if let Some(node) = node.and_then(|node| node.parse::<usize>().ok()) {
                counts[node] = fields[current].parse().expect("a number");
            }
        }
        counts
    }

    /// Sends no more connections to a node, and ends those that it has.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn take_out(&self, node: usize) {
        self.ask(&format!("set server nodes/n{node} state maint"));
        self.ask(&format!("shutdown sessions server nodes/n{node}"));
    }

    /// Sends connections to the node again.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn put_back(&self, node: usize) {
        self.ask(&format!("set server nodes/n{node} state ready"));
    }

    fn ask(&self, command: &str) -> String {
        let control = control_of(&self.server);
        let answer = time::poll(ANSWER_WITHIN, || {
            let mut socket = UnixStream::connect(&control).ok()?;
            socket.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
            writeln!(socket, "{command}").ok()?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).ok()?;
            Some(answer)
        });
        answer.unwrap_or_else(|| panic!("no answer to `{command}`\n{}", self.server.log_tail()))
    }
}

fn control_of(server: &Server) -> PathBuf {
    server.dir().join("control")
}

fn configuration(cluster: &Nodes, balance: Balance, port: u16, control: &Path) -> String {
    let mut text = format!(
        "global
    maxconn 500
    stats socket {} mode 600 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout check 2s
    timeout client 10m
    timeout server 10m
    retries 2
    option redispatch
    default-server inter 200ms fall 2 rise 2 on-marked-down shutdown-sessions
listen nodes
    bind 127.0.0.1:{port}
    balance roundrobin
",
        control.display()
    );
    for node in 0..NODES {
        let backup = match balance {
            Balance::First if node > 0 => " backup",
            _ => "",
        };
        let at = cluster.node(node).port();
        text.push_str(&format!(
            "    server n{node} 127.0.0.1:{at} check{backup}\n"
        ));
    }
    text
}
