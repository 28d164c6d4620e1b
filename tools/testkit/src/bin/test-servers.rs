//! Real servers for tests that are not written in Rust.
//!
//! `test-servers postgres postgres18 mariadb mysql pgbouncer galera` starts these servers and
//! prints a line of JSON with their addresses: `null` for one that this machine does not have, or a
//! failure if `DBLOCK_REQUIRE` names it. It stops them when its standard input ends. Each line of
//! input is a command, answered by one line of JSON, `{"error": …}` if it is not understood:
//!
//! - `database SERVER`: makes an empty database, `{"url": …}`. `pgbouncer` has a PostgreSQL server
//!   of its own: its answer has a `direct_url` too, and the other commands are about PgBouncer
//!   itself
//! - `stop SERVER`, `kill SERVER` (by SIGKILL), `start SERVER`, `restart SERVER`: the data and the
//!   port stay
//! - `freeze SERVER`, `thaw SERVER`: connections stay open without answers
//! - a node of a cluster is a server too, `galera/0` to `galera/2`, as in `kill galera/1`. Beside
//!   these: `isolate NODE` and `rejoin NODE` (cut off from the other nodes, and back), `start NODE`
//!   waits until it has caught up, `mend galera` until all nodes have, and `status NODE` answers
//!   `{"serves": …, "size": …}`
//! - `proxy URL`: starts a proxy to the server of that URL, `{"proxy": "p0", "url": …}`
//! - `stall PROXY`, `stall-replies PROXY`, `resume PROXY`, `cut PROXY`, `refuse PROXY`,
//!   `accept PROXY`, `close PROXY`; `counts PROXY`: the connections and bytes so far
#![allow(clippy::print_stdout, reason = "the answers go to standard output")]

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use testkit::{Galera, MariaDb, MySql, MySqlServer, PgBouncer, Postgres, Proxy, galera};

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = names.iter().find(|name| !ENGINES.contains(&name.as_str())) {
        panic!("no engine `{name}`: there are {}", ENGINES.join(", "));
    }
    let mut servers = Servers::start(&names);
    say(&servers.describe());
    for line in std::io::stdin().lines() {
        let line = line.expect("commands are text");
        let answer = match line.split_once(' ') {
            Some((verb, what)) => servers.obey(verb, what.trim()),
            None => Err(format!("`{line}`: a command is a verb and what it is for")),
        };
        say(&answer.unwrap_or_else(|why| json!({ "error": why })));
    }
}

const ENGINES: [&str; 6] = [
    "postgres",
    "postgres18",
    "mariadb",
    "mysql",
    "pgbouncer",
    "galera",
];

fn say(answer: &Value) {
    // A test that has ended has closed standard input too, which ends this process.
    let _ = writeln!(std::io::stdout(), "{answer}");
}

struct Servers {
    servers: BTreeMap<String, Option<Server>>,
    proxies: BTreeMap<String, Proxy>,
    proxies_made: usize,
}

enum Server {
    Postgres(Postgres),
    MySql(MySqlServer),
    PgBouncer(PgBouncer, Postgres),
    Galera(Galera),
}

impl Servers {
    /// All at the same time: most of a start is waiting.
    fn start(names: &[String]) -> Self {
        let servers = std::thread::scope(|scope| {
            let starts: Vec<_> = names
                .iter()
                .map(|name| (name.clone(), scope.spawn(|| Server::start(name))))
                .collect();
            starts
                .into_iter()
                .map(|(name, start)| (name, start.join().expect("the server starts")))
                .collect()
        });
        Self {
            servers,
            proxies: BTreeMap::new(),
            proxies_made: 0,
        }
    }

    fn describe(&self) -> Value {
        let one = |server: &Option<Server>| server.as_ref().map_or(Value::Null, Server::describe);
        let all = self.servers.iter();
        all.map(|(name, server)| (name.clone(), one(server)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    fn obey(&mut self, verb: &str, what: &str) -> Result<Value, String> {
        if verb == "proxy" {
            return Ok(self.proxy(what));
        }
        if let Some(proxy) = self.proxies.get(what) {
            match verb {
                "stall" => proxy.stall(),
                "stall-replies" => proxy.stall_replies(),
                "resume" => proxy.resume(),
                "cut" => proxy.cut(),
                "refuse" => proxy.refuse(true),
                "accept" => proxy.refuse(false),
                "close" => drop(self.proxies.remove(what)),
                "counts" => return Ok(counts(proxy)),
                _ => return Err(format!("a proxy cannot `{verb}`")),
            }
            return Ok(json!({ "ok": verb }));
        }
        let (what, node) = match what.split_once('/') {
            Some((what, node)) => (what, Some(node)),
            None => (what, None),
        };
        match self.servers.get_mut(what) {
            Some(Some(Server::Galera(cluster))) => obey_cluster(cluster, node, verb),
            Some(Some(_)) if node.is_some() => Err(format!("{what} has no nodes")),
            Some(Some(server)) => server.obey(verb),
            Some(None) => Err(format!("there is no {what} on this machine")),
            None => Err(format!("`{what}` is neither a server nor a proxy here")),
        }
    }

    fn proxy(&mut self, url: &str) -> Value {
        let proxy = Proxy::to_url(url);
        let name = format!("p{}", self.proxies_made);
        let answer = json!({ "proxy": name, "url": proxy.url(url) });
        self.proxies_made += 1;
        self.proxies.insert(name, proxy);
        answer
    }
}

fn counts(proxy: &Proxy) -> Value {
    let counts = proxy.counts();
    json!({
        "connections": counts.connections,
        "open": proxy.open_connections(),
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
    })
}

impl Server {
    fn start(name: &str) -> Option<Self> {
        match name {
            "postgres" => Postgres::start().map(Self::Postgres),
            "postgres18" => Postgres::start_version(18).map(Self::Postgres),
            "pgbouncer" => {
                let server = Postgres::start()?;
                PgBouncer::start(&server, &[]).map(|pooler| Self::PgBouncer(pooler, server))
            }
            "galera" => Galera::start().map(Self::Galera),
            "mysql" => MySql::start().map(Self::MySql),
            _ => MariaDb::start().map(Self::MySql),
        }
    }

    fn describe(&self) -> Value {
        match self {
            Self::Postgres(server) => json!({
                "url": server.url(),
                "socket_url": server.socket_url("postgres"),
                "locker_url": server.locker_url("postgres"),
                "port": server.port(),
                "socket": server.socket_dir(),
                "data": server.server().dir().join("data"),
                "pid": server.server().pid(),
                "bin": server.bin(),
            }),
            Self::MySql(server) => describe_mysql(server),
            Self::PgBouncer(pooler, server) => json!({
                "url": pooler.url("postgres"),
                "direct_url": server.url(),
                "port": pooler.port(),
                "pid": pooler.server().pid(),
            }),
            Self::Galera(cluster) => {
                let nodes = (0..galera::NODES).map(|node| describe_mysql(cluster.node(node)));
                json!({
                    "url": cluster.url_of(&[0, 1, 2], "mysql"),
                    "locker_url": cluster.locker_url(&[0, 1, 2], "mysql"),
                    "nodes": nodes.collect::<Vec<_>>(),
                })
            }
        }
    }

    fn obey(&mut self, verb: &str) -> Result<Value, String> {
        macro_rules! each {
            ($server:ident => $call:expr) => {
                match self {
                    Self::Postgres($server) => $call,
                    Self::MySql($server) => $call,
                    Self::PgBouncer($server, _) => $call,
                    Self::Galera(_) => unreachable!("a cluster has commands of its own"),
                }
            };
        }
        match verb {
            "database" => {
                return Ok(match self {
                    Self::Postgres(server) => json!({ "url": server.fresh_database() }),
                    Self::MySql(server) => json!({ "url": server.fresh_database() }),
                    Self::PgBouncer(pooler, server) => {
                        let direct = server.fresh_database();
                        json!({ "url": pooler.url(&direct), "direct_url": direct })
                    }
                    Self::Galera(_) => unreachable!("a cluster has commands of its own"),
                });
            }
            "stop" => each!(server => server.stop()),
            "kill" => each!(server => server.kill()),
            "start" if each!(server => server.server().pid()).is_some() => {
                return Err("it is running".into());
            }
            "start" | "restart" => each!(server => server.restart()),
            "freeze" => each!(server => server.freeze()),
            "thaw" => each!(server => server.thaw()),
            _ => return Err(format!("a server cannot `{verb}`")),
        }
        Ok(json!({ "ok": verb }))
    }
}

fn describe_mysql(server: &MySqlServer) -> Value {
    json!({
        "url": server.url(),
        "socket_url": server.socket_url("mysql"),
        "locker_url": server.locker_url("mysql"),
        "port": server.port(),
        "socket": server.socket(),
        "data": server.server().dir().join("data"),
        "pid": server.server().pid(),
    })
}

/// A command for the whole cluster, or for one of its nodes.
fn obey_cluster(cluster: &mut Galera, node: Option<&str>, verb: &str) -> Result<Value, String> {
    let Some(node) = node else {
        match verb {
            "database" => {
                let url = cluster.fresh_database();
                let urls: Vec<String> = (0..galera::NODES)
                    .map(|node| cluster.url_at(node, &url))
                    .collect();
                let all: Vec<usize> = (0..galera::NODES).collect();
                return Ok(json!({ "url": cluster.url_of(&all, &url), "urls": urls }));
            }
            "mend" => cluster.mend(),
            _ => {
                return Err(format!(
                    "a cluster cannot `{verb}`; a node is galera/0, say"
                ));
            }
        }
        return Ok(json!({ "ok": verb }));
    };
    let node = match node.parse() {
        Ok(node) if node < galera::NODES => node,
        _ => return Err(format!("no node `{node}`: there are 0 to 2")),
    };
    let runs = cluster.node(node).server().pid().is_some();
    match verb {
        "stop" => cluster.stop(node),
        "kill" => cluster.kill(node),
        "start" if runs => return Err("it is running".into()),
        "start" => cluster.start_node(node),
        "restart" => {
            cluster.stop(node);
            cluster.start_node(node);
        }
        "freeze" => cluster.freeze(node),
        "thaw" => cluster.thaw(node),
        "isolate" => cluster.isolate(node),
        "rejoin" => cluster.rejoin(node),
        "status" => {
            let size = cluster.status(node, "wsrep_cluster_size");
            return Ok(json!({ "serves": cluster.serves(node), "size": size }));
        }
        _ => return Err(format!("a node cannot `{verb}`")),
    }
    Ok(json!({ "ok": verb }))
}
