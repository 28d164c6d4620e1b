//! A Galera cluster of three MariaDB servers, each of which can be written to.

use std::ops::{Deref, DerefMut};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use crate::mysql::{MariaDb, MySqlServer};
use crate::nodes::{self, Nodes, give_clock};
use crate::programs::require;
use crate::server::{free_port, on_free_ports};
use crate::time;

mod history;
mod installed;

use history::{copy, position_in, recovered};
use installed::{Programs, found, missing};

pub use crate::nodes::NODES;

/// How long a node may take until it knows that it has lost the others.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(15);

/// How soon the other nodes go on without a silent one: 5 s is the default.
const SUSPECT_AFTER: &str = "evs.suspect_timeout=PT4S";

/// Three servers, numbered from 0, that hold the same data: to be stopped, killed, frozen and cut
/// off from the others.
///
/// The users are those of [`MySqlServer`]. A database is made on all of them.
#[derive(Debug)]
pub struct Galera {
    nodes: Nodes,
    isolated: [bool; NODES],
    patient: [bool; NODES],
}

impl Deref for Galera {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

impl DerefMut for Galera {
    fn deref_mut(&mut self) -> &mut Nodes {
        &mut self.nodes
    }
}

/// How to start a cluster: see [`Galera::options`].
pub type Options = nodes::Options<Galera>;

impl Options {
    /// Starts the nodes and waits until each has what the others have. `None`, and a printed
    /// line, if this machine lacks something for it.
    ///
    /// # Panics
    ///
    /// If all is there and it does not start, with the end of a log; or if something is not
    /// there and `galera` is [required](require).
    pub fn start(self) -> Option<Galera> {
        let clocks = self.has_clocks();
        require("galera", missing(clocks), found(clocks))
            .map(|programs| Galera::new(&programs, &self))
    }
}

/// The cluster that the tests of a binary share, for a test that leaves it as it is.
pub type Shared = nodes::Shared<Galera>;

/// The cluster that the tests of a binary share, for a test that breaks it.
pub type Alone = nodes::Alone<Galera>;

impl nodes::Cluster for Galera {
    fn mend(&mut self) {
        Self::mend(self);
    }
}

fn shared() -> Option<&'static RwLock<Galera>> {
    static SHARED: OnceLock<Option<RwLock<Galera>>> = OnceLock::new();
    let options = (0..NODES).fold(Galera::options(), |options, node| options.clock(node, 0));
    let shared = SHARED
        .get_or_init(|| found(true).map(|programs| RwLock::new(Galera::new(&programs, &options))));
    // Asked every time: each skipped test prints a line.
    require("galera", missing(true), shared.as_ref())
}

impl Galera {
    /// Its name in promises.
    pub const ENGINE: &str = "galera";

    /// Options for a cluster for one test, all of whose clocks are right.
    pub fn options() -> Options {
        Options::new(MariaDb::options())
    }

    /// Starts a cluster for one test. `None` when this machine lacks something for it.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn start() -> Option<Self> {
        Self::options().start()
    }

    /// The cluster that all tests of this binary share, for a test that leaves its nodes alone:
    /// others run at the same time. `None` when this machine lacks something for it.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared() -> Option<Shared> {
        Some(shared()?.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Like [`shared`](Self::shared), for a test that stops, kills, freezes or cuts off nodes, or
    /// sets their clocks: no other test runs meanwhile.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared_alone() -> Option<Alone> {
        Some(Alone::of(shared()?))
    }

    fn new(programs: &Programs, options: &Options) -> Self {
        on_free_ports(|| Self::try_new(programs, options))
    }

    /// The data of one node is made, and copied for the others together with its place in the
    /// history of the cluster: so they need no transfer of state, which takes several times as
    /// long.
    fn try_new(programs: &Programs, options: &Options) -> Result<Self, String> {
        let ports: Vec<[u16; 4]> = (0..NODES).map(|_| [(); 4].map(|()| free_port())).collect();
        let mut nodes: Vec<MySqlServer> = (0..NODES)
            .map(|node| unlaunched(programs, options, &ports, node))
            .collect();

        let first = &mut nodes[0];
        first.fill();
        let found = "--wsrep-new-cluster".to_owned();
        first.launch(std::slice::from_ref(&found))?;
        first.stop();
        let position = position_in(&first.data()).ok_or_else(|| first.server.log_tail())?;
        let (first, rest) = nodes.split_at_mut(1);
        for node in rest.iter() {
            copy(&first[0].data(), node);
        }

        let position = format!("--wsrep-start-position={position}");
        first[0].launch(&[found, position.clone()])?;
        // Together: most of the time they wait for each other.
        std::thread::scope(|scope| {
            let starts: Vec<_> = rest
                .iter_mut()
                .map(|node| scope.spawn(|| node.launch(std::slice::from_ref(&position))))
                .collect();
            let outcomes = starts
                .into_iter()
                .map(|start| start.join().expect("no panic"));
            outcomes.collect::<Result<Vec<()>, String>>()
        })?;
        let cluster = Self {
            nodes: Nodes::new(nodes, options.clocks),
            isolated: [false; NODES],
            patient: [false; NODES],
        };
        cluster.wait_until_healthy();
        Ok(cluster)
    }

    /// Makes an empty database, which `locker` may use, and gives its URL at the first node as the
    /// superuser. Every node that serves has it.
    ///
    /// # Panics
    ///
    /// If no node serves.
    pub fn fresh_database(&self) -> String {
        let serving: Vec<usize> = (0..NODES).filter(|node| self.serves(*node)).collect();
        self.make_database(&serving)
    }

    /// Whether a node runs, belongs to a majority and has what the others have.
    pub fn serves(&self, node: usize) -> bool {
        self.runs(node)
            && self.status(node, "wsrep_local_state_comment").as_deref() == Some("Synced")
            && self.status(node, "wsrep_cluster_status").as_deref() == Some("Primary")
            && self.status(node, "wsrep_ready").as_deref() == Some("ON")
    }

    /// A status variable of a node, such as `wsrep_cluster_size`.
    pub fn status(&self, node: usize, name: &str) -> Option<String> {
        let answer = self.query(node, "mysql", &format!("SHOW STATUS LIKE '{name}'"));
        let value = answer.ok()?.split_once('\t')?.1.trim().to_owned();
        Some(value)
    }

    /// How many transactions were refused or ended, since another had written the same row.
    ///
    /// # Panics
    ///
    /// If a node does not answer.
    pub fn conflicts(&self) -> u64 {
        let counters = ["wsrep_local_cert_failures", "wsrep_local_bf_aborts"];
        let found = (0..NODES).flat_map(|node| counters.map(|counter| self.status(node, counter)));
        let counts = found.map(|count| count.and_then(|count| count.parse::<u64>().ok()));
        counts.map(|count| count.expect("a number")).sum()
    }

    /// Waits until a node [serves](Self::serves).
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_until_serving(&self, node: usize) {
        self.wait_for(node, "serving", || self.serves(node));
    }

    /// Waits until a node reports that it no longer belongs to a majority.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_until_cut_off(&self, node: usize) {
        self.wait_for(node, "cut off", || {
            self.status(node, "wsrep_cluster_status")
                .is_some_and(|status| status != "Primary")
        });
    }

    /// Waits until a node knows that there are so many in the cluster.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_for_size(&self, node: usize, size: usize) {
        self.wait_for(node, &format!("in a cluster of {size}"), || {
            self.status(node, "wsrep_cluster_size") == Some(size.to_string())
        });
    }

    /// Waits until all nodes belong together and serve.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_until_healthy(&self) {
        // A thawed node reports its former view for a moment; the others have the current one.
        for node in 0..NODES {
            self.wait_for_size(node, NODES);
        }
        for node in 0..NODES {
            self.wait_until_serving(node);
        }
    }

    /// Stops a node, which closes its connections and leaves the cluster.
    pub fn stop(&mut self, node: usize) {
        self.nodes.servers[node].stop();
    }

    /// Kills a node by SIGKILL. The others take some seconds until they go on without it.
    pub fn kill(&mut self, node: usize) {
        self.nodes.servers[node].kill();
    }

    /// Starts a node that was stopped or killed, on the same port, and waits until it has caught up
    /// with the others; there has to be a majority.
    ///
    /// # Panics
    ///
    /// If it does not come back, with the end of its log.
    pub fn start_node(&mut self, node: usize) {
        self.launch_node(node);
        self.wait_until_serving(node);
    }

    fn launch_node(&mut self, node: usize) {
        let mariadb = &mut self.nodes.servers[node];
        if mariadb.server().pid().is_some() {
            return;
        }
        (self.isolated[node], self.patient[node]) = (false, false);
        // As the packages' own unit does it, after a crash above all: without a place in the
        // history it would have to be sent all data.
        let position = recovered(mariadb);
        let more: Vec<String> = position
            .map(|position| format!("--wsrep-start-position={position}"))
            .into_iter()
            .collect();
        mariadb.launch(&more).unwrap_or_else(|log| panic!("{log}"));
    }

    /// Freezes a node: the kernel accepts connections, and nothing is answered. The others take
    /// some seconds until they go on without it; until then no transaction commits.
    pub fn freeze(&mut self, node: usize) {
        self.nodes.servers[node].freeze();
    }

    /// Thaws a frozen node. For a moment it believes that it still belongs to the others.
    pub fn thaw(&mut self, node: usize) {
        self.nodes.servers[node].thaw();
    }

    /// Cuts the node off from the others, but not from its clients. It takes some seconds until it
    /// knows: see [`wait_until_cut_off`](Self::wait_until_cut_off).
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn isolate(&mut self, node: usize) {
        self.set_isolated(node, true);
    }

    /// Ends the isolation of a node.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn rejoin(&mut self, node: usize) {
        self.set_isolated(node, false);
    }

    fn set_isolated(&mut self, node: usize, on: bool) {
        let option = format!("gmcast.isolate={}", u8::from(on));
        self.set_provider(node, &option);
        self.isolated[node] = on;
    }

    /// Makes a node wait for minutes for others that are silent, whether they are still there or not:
    /// cut off from them it goes on calling itself ready, while its commits hang. The other nodes go
    /// on without it as soon as ever.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn make_patient(&mut self, node: usize) {
        // The second must not be longer than the first.
        for option in ["evs.inactive_timeout=PT5M", "evs.suspect_timeout=PT5M"] {
            self.set_provider(node, option);
        }
        self.patient[node] = true;
    }

    fn make_impatient(&mut self, node: usize) {
        for option in [SUSPECT_AFTER, "evs.inactive_timeout=PT15S"] {
            self.set_provider(node, option);
        }
        self.patient[node] = false;
    }

    fn set_provider(&self, node: usize, option: &str) {
        let set = format!("SET GLOBAL wsrep_provider_options = '{option}'");
        self.query(node, "mysql", &set).expect("root may set it");
    }

    /// Makes all nodes run and serve again after any faults. Their clocks stay as they are.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn mend(&mut self) {
        for node in 0..NODES {
            self.thaw(node);
            let runs = self.nodes.servers[node].server().pid().is_some();
            if self.patient[node] && runs {
                self.make_impatient(node);
            }
            if self.isolated[node] && runs {
                self.rejoin(node);
            }
        }
        let running = |node: &usize| self.nodes.servers[*node].server().pid().is_some();
        let left: Vec<usize> = (0..NODES).filter(running).collect();
        match left.first() {
            None => self.found_anew(),
            // The remaining nodes may be too few to go on by themselves.
            Some(first) if left.len() <= NODES / 2 => {
                let primary = || self.status(*first, "wsrep_cluster_status");
                let cut_off = || primary().is_some_and(|status| status != "Primary");
                if time::wait_until(CUT_OFF_WITHIN, cut_off) {
                    self.set_provider(*first, "pc.bootstrap=true");
                }
            }
            Some(_) => {}
        }
        for node in 0..NODES {
            self.launch_node(node);
        }
        self.wait_until_healthy();
    }
}

impl Galera {
    /// Starts the node that has the most of the history, when none runs.
    fn found_anew(&mut self) {
        let seqno = |position: &str| {
            let (_, seqno) = position.rsplit_once(':')?;
            seqno.parse::<i64>().ok()
        };
        let (position, first) = (0..NODES)
            .filter_map(|node| Some((recovered(&self.nodes.servers[node])?, node)))
            .max_by_key(|(position, _)| seqno(position))
            .expect("a node has data");
        let node = &mut self.nodes.servers[first];
        let state = node.data().join("grastate.dat");
        let text = std::fs::read_to_string(&state).expect("the node wrote it");
        let text = text.replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1");
        std::fs::write(&state, text).expect("the directory can be written to");
        let more = [
            "--wsrep-new-cluster".to_owned(),
            format!("--wsrep-start-position={position}"),
        ];
        node.launch(&more).unwrap_or_else(|log| panic!("{log}"));
    }
}

fn unlaunched(
    programs: &Programs,
    options: &Options,
    ports: &[[u16; 4]],
    node: usize,
) -> MySqlServer {
    let [port, group, incremental, whole] = ports[node];
    let all: Vec<String> = ports
        .iter()
        .map(|[_, group, ..]| format!("127.0.0.1:{group}"))
        .collect();
    let provider_options = [
        format!("gmcast.listen_addr=tcp://127.0.0.1:{group}"),
        format!("ist.recv_addr=127.0.0.1:{incremental}"),
        "gcache.size=16M".into(),
        "gcache.page_size=16M".into(),
        SUSPECT_AFTER.into(),
    ];
    let mut mariadb = MySqlServer::unlaunched(programs.mariadbd.clone(), &options.node);
    mariadb.port = port;
    mariadb.args.extend([
        "--binlog-format=ROW".into(),
        "--innodb-autoinc-lock-mode=2".into(),
        "--wsrep-on=ON".into(),
        format!("--wsrep-provider={}", programs.provider.display()),
        "--wsrep-cluster-name=tests".into(),
        // A transaction has the same number at every node, which gives the order of commits.
        "--wsrep-gtid-mode=ON".into(),
        "--wsrep-gtid-domain-id=1".into(),
        format!("--wsrep-cluster-address=gcomm://{}", all.join(",")),
        format!("--wsrep-node-name=n{node}"),
        format!("--wsrep-node-address=127.0.0.1:{group}"),
        format!("--wsrep-provider-options={}", provider_options.join(";")),
        "--wsrep-sst-method=rsync".into(),
        format!("--wsrep-sst-receive-address=127.0.0.1:{whole}"),
    ]);
    if let (Some(ahead), Some(library)) = (options.clocks[node], &programs.faketime) {
        give_clock(&mut mariadb, library, ahead);
    }
    mariadb
}
