//! Three servers of MySQL in a group (Group Replication), each of which can be written to.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use crate::faketime;
use crate::mysql::{Flavor, MySql, MySqlServer};
use crate::nodes::{self, NODES, Nodes, give_clock};
use crate::programs::require;
use crate::server::{free_port, on_free_ports};
use crate::sql::SqlError;
use crate::time;

mod members;
mod server;

use members::{QUERY, is_majority};
use server::unlaunched;

pub use members::Member;

/// Its name in promises and in `DBLOCK_REQUIRE`.
pub const ENGINE: &str = "mysql-group";

/// How long the group may take to be whole again, by itself or with help.
const MENDED_WITHIN: Duration = Duration::from_secs(240);

/// How long a node may take to join, on a machine that is busy.
const JOINED_WITHIN: Duration = Duration::from_secs(120);

/// How long members that are connected again may take until one of them serves.
const ALONE_WITHIN: Duration = Duration::from_secs(20);

/// Three servers, numbered from 0, that hold the same data: to be killed, frozen and taken out of
/// the group.
#[derive(Debug)]
pub struct Group {
    nodes: Nodes,
    single_primary: bool,
}

impl Deref for Group {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

impl DerefMut for Group {
    fn deref_mut(&mut self) -> &mut Nodes {
        &mut self.nodes
    }
}

/// How to start a group: see [`Group::options`].
pub type Options = nodes::Options<Group>;

impl Options {
    /// Starts the nodes and waits until they are one group. `None`, and a printed line, if this
    /// machine lacks something for it.
    ///
    /// # Panics
    ///
    /// If all is there and it does not start, with the end of a log; or if something is not
    /// there and `mysql-group` is [required](require).
    pub fn start(self) -> Option<Group> {
        require(ENGINE, self.missing(), self.found())
            .map(|(mysqld, faketime)| Group::new(&mysqld, faketime.as_ref(), &self))
    }

    fn found(&self) -> Option<(PathBuf, Option<PathBuf>)> {
        let faketime = match self.has_clocks() {
            true => Some(faketime::library()?),
            false => None,
        };
        Some((Flavor::MySql.program()?, faketime))
    }

    fn missing(&self) -> &'static str {
        match Flavor::MySql.program() {
            Some(_) => "libfaketimeMT.so.1",
            None => Flavor::MySql.binary(),
        }
    }
}

/// The group that the tests of a binary share, for a test that leaves it as it is.
pub type Shared = nodes::Shared<Group>;

/// The group that the tests of a binary share, for a test that breaks it.
pub type Alone = nodes::Alone<Group>;

impl nodes::Cluster for Group {
    fn mend(&mut self) {
        Self::mend(self);
    }
}

fn shared() -> Option<&'static RwLock<Group>> {
    static SHARED: OnceLock<Option<RwLock<Group>>> = OnceLock::new();
    // Without faketime, under which timed waits of these servers return at once, so that three
    // servers use two processors fully.
    let options = Group::options();
    let shared = SHARED.get_or_init(|| {
        options
            .found()
            .map(|(mysqld, faketime)| Group::new(&mysqld, faketime.as_ref(), &options))
            .map(RwLock::new)
    });
    // Asked every time: each skipped test prints a line.
    require(ENGINE, options.missing(), shared.as_ref())
}

impl Group {
    /// Its name in promises.
    pub const ENGINE: &str = ENGINE;

    /// Options for a group for one test, all of whose clocks are right.
    pub fn options() -> Options {
        // The members speak to each other over the port of clients, and only by TLS.
        Options::new(MySql::options().set("tls-version=TLSv1.2,TLSv1.3"))
    }

    /// The group that all tests of this binary share, for a test that leaves its nodes alone:
    /// others run at the same time. `None` when this machine lacks something for it.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared() -> Option<Shared> {
        Some(shared()?.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Like [`shared`](Self::shared), for a test that kills or freezes nodes, or sets their clocks:
    /// no other test runs meanwhile.
    ///
    /// # Panics
    ///
    /// As [`Options::start`].
    pub fn shared_alone() -> Option<Alone> {
        Some(Alone::of(shared()?))
    }

    fn new(mysqld: &Path, faketime: Option<&PathBuf>, options: &Options) -> Self {
        on_free_ports(|| Self::try_new(mysqld, faketime, options))
    }

    fn try_new(
        mysqld: &Path,
        faketime: Option<&PathBuf>,
        options: &Options,
    ) -> Result<Self, String> {
        let ports: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let mut nodes: Vec<MySqlServer> = (0..NODES)
            .map(|node| {
                let mut server = unlaunched(mysqld, &options.node, &ports, node);
                if let (Some(ahead), Some(library)) = (options.clocks[node], faketime) {
                    give_clock(&mut server, library, ahead);
                }
                server.fill();
                server
            })
            .collect();
        // Together: most of the time they wait for the disk.
        std::thread::scope(|scope| {
            let starts: Vec<_> = nodes
                .iter_mut()
                .map(|node| scope.spawn(|| node.launch(&[])))
                .collect();
            let outcomes = starts
                .into_iter()
                .map(|start| start.join().expect("no panic"));
            outcomes.collect::<Result<Vec<()>, String>>()
        })?;
        let group = Self {
            nodes: Nodes::new(nodes, options.clocks),
            single_primary: false,
        };
        group.found(0);
        for node in 1..NODES {
            group.join(node);
        }
        group.wait_until_healthy();
        Ok(group)
    }

    /// Founds the group at one node.
    fn found(&self, node: usize) {
        let bootstrap = |on: &str| format!("SET GLOBAL group_replication_bootstrap_group = {on}");
        self.run(node, &bootstrap("ON"));
        self.join(node);
        self.run(node, &bootstrap("OFF"));
    }

    /// Makes a node join the others.
    fn join(&self, node: usize) {
        self.try_join(node)
            .unwrap_or_else(|error| panic!("node {node} does not join: {error}"));
    }

    fn try_join(&self, node: usize) -> Result<(), SqlError> {
        let mut session = self.sql_session(node, "mysql");
        for statement in [
            "STOP GROUP_REPLICATION",
            // An expelled member is in offline mode.
            "SET GLOBAL offline_mode = OFF",
            "CHANGE REPLICATION SOURCE TO SOURCE_USER = 'root', SOURCE_PASSWORD = '' \
             FOR CHANNEL 'group_replication_recovery'",
        ] {
            session.run(statement)?;
        }
        session.send("START GROUP_REPLICATION");
        let joined = session.answer(JOINED_WITHIN);
        joined.unwrap_or_else(|| panic!("node {node} does not join in {JOINED_WITHIN:?}"))?;
        session.close();
        Ok(())
    }

    fn run(&self, node: usize, statement: &str) -> String {
        self.query(node, "mysql", statement)
            .unwrap_or_else(|error| panic!("node {node}: {error}"))
    }

    /// Makes an empty database, which `locker` may use at the node that it is made through, and
    /// gives its URL at the first node as the superuser. Every node that serves has it.
    ///
    /// # Panics
    ///
    /// If no node serves.
    pub fn fresh_database(&self) -> String {
        let view = (0..NODES)
            .map(|node| self.members(node))
            .find(|members| is_majority(members))
            .expect("a node serves");
        let online = |node: &usize| {
            let port = self.node(*node).port();
            let member = view.iter().find(|member| member.port == port);
            member.filter(|member| member.is_online())
        };
        let mut serving: Vec<usize> = (0..NODES).filter(|node| online(node).is_some()).collect();
        serving.sort_by_key(|node| !online(node).is_some_and(Member::is_primary));
        self.make_database(&serving)
    }

    /// What a node knows of the members.
    pub fn members(&self, node: usize) -> Vec<Member> {
        let answer = match self.runs(node) {
            true => self.query(node, "mysql", QUERY).unwrap_or_default(),
            false => String::new(),
        };
        answer.lines().filter_map(Member::parse).collect()
    }

    fn member(&self, node: usize) -> Option<Member> {
        let port = self.node(node).port();
        self.members(node)
            .into_iter()
            .find(|member| member.port == port)
    }

    /// Whether a node runs, is online and belongs to a majority.
    pub fn serves(&self, node: usize) -> bool {
        let (members, port) = (self.members(node), self.node(node).port());
        let mut itself = members.iter().filter(|member| member.port == port);
        is_majority(&members) && itself.any(Member::is_online)
    }

    /// Whether a node can be written to.
    pub fn is_primary(&self, node: usize) -> bool {
        self.member(node).is_some_and(|member| member.is_primary())
    }

    /// Whether a node sees all members online.
    fn is_whole(&self, node: usize) -> bool {
        let members = self.members(node);
        members.len() == NODES && members.iter().all(Member::is_online)
    }

    /// How many transactions were refused, since another had written the same row.
    pub fn conflicts(&self) -> u64 {
        let count = "SELECT count_conflicts_detected \
                     FROM performance_schema.replication_group_member_stats \
                     WHERE member_id = @@server_uuid";
        let found = (0..NODES).map(|node| self.run(node, count).parse::<u64>());
        found
            .map(|count| count.expect("a number"))
            .max()
            .unwrap_or(0)
    }

    /// Waits until a node has applied all that the others have committed.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn catch_up(&self, node: usize) {
        let read = "SET SESSION group_replication_consistency = 'BEFORE'; SELECT COUNT(*) FROM db";
        // Refused (3796) for as long as the node itself does not know yet that it is online.
        self.wait_for(node, "up to date", || {
            self.query(node, "mysql", read).is_ok()
        });
    }

    /// Waits until all nodes belong together and serve.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_until_healthy(&self) {
        for node in 0..NODES {
            self.wait_for(node, "in a whole group", || self.is_whole(node));
        }
    }

    /// Waits until a node does not belong to a majority any more, and knows it.
    ///
    /// # Panics
    ///
    /// If it takes too long.
    pub fn wait_until_cut_off(&self, node: usize) {
        self.wait_for(node, "cut off", || !self.serves(node));
    }

    /// Kills a node by SIGKILL. The others take some seconds until they go on without it.
    pub fn kill(&mut self, node: usize) {
        self.nodes.servers[node].kill();
    }

    /// Freezes a node: connections are accepted, by the kernel, and not answered. The others take
    /// some seconds until they go on without it.
    pub fn freeze(&mut self, node: usize) {
        self.nodes.servers[node].freeze();
    }

    /// Thaws a frozen node. For a moment it believes that it still belongs to the others.
    pub fn thaw(&mut self, node: usize) {
        self.nodes.servers[node].thaw();
    }

    /// Starts the server of a node that was killed. It belongs to no group, as after a boot.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log.
    pub fn start_outside(&mut self, node: usize) {
        if !self.runs(node) {
            let server = &mut self.nodes.servers[node];
            server.launch(&[]).unwrap_or_else(|log| panic!("{log}"));
        }
    }

    /// Starts a node that was killed, and waits until it has caught up with the others.
    ///
    /// # Panics
    ///
    /// If it does not come back.
    pub fn start_node(&mut self, node: usize) {
        self.start_outside(node);
        self.join(node);
        self.wait_for(node, "serving", || self.serves(node));
    }

    /// Makes one node the only one that takes writes.
    ///
    /// # Panics
    ///
    /// If the group refuses.
    pub fn have_one_primary(&mut self, node: usize) {
        let uuid = self.run(node, "SELECT @@server_uuid");
        let switch = format!("SELECT group_replication_switch_to_single_primary_mode('{uuid}')");
        self.run(node, &switch);
        self.single_primary = true;
        self.wait_for(node, "the primary", || self.is_primary(node));
    }

    /// Makes all nodes run and serve again after any faults. Their clocks stay as they are.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub fn mend(&mut self) {
        for node in 0..NODES {
            self.thaw(node);
        }
        self.start_all();
        let began = time::now();
        let mut served = began;
        while !(0..NODES).all(|node| self.is_whole(node)) {
            assert!(
                began.elapsed() < MENDED_WITHIN,
                "not whole: {:?}",
                (0..NODES)
                    .map(|node| self.members(node))
                    .collect::<Vec<_>>()
            );
            if let Some(node) = (0..NODES).find(|node| self.serves(*node)) {
                served = time::now();
                // Before: a member that was started anew knows of no single primary, and is
                // refused.
                self.have_all_primaries(node);
                self.bring_back();
            } else if (0..NODES).all(|node| self.is_outside(node)) {
                self.found_anew();
            } else if served.elapsed() > ALONE_WITHIN {
                (0..NODES).for_each(|node| self.kill(node));
                self.start_all();
            }
            time::sleep(Duration::from_millis(500));
        }
        self.have_all_primaries(0);
        self.wait_until_healthy();
    }

    fn have_all_primaries(&mut self, node: usize) {
        if self.single_primary {
            self.run(
                node,
                "SELECT group_replication_switch_to_multi_primary_mode()",
            );
            self.single_primary = false;
        }
    }

    /// Starts those that do not run, together.
    fn start_all(&mut self) {
        std::thread::scope(|scope| {
            for server in &mut self.nodes.servers {
                if server.server().pid().is_none() {
                    scope.spawn(|| server.launch(&[]).unwrap_or_else(|log| panic!("{log}")));
                }
            }
        });
    }

    /// Whether a node belongs to no group.
    fn is_outside(&self, node: usize) -> bool {
        let state = self.member(node).map(|member| member.state);
        matches!(state.as_deref(), None | Some("OFFLINE" | "ERROR"))
    }

    /// Makes members join again that have left or were expelled.
    fn bring_back(&self) {
        for node in (0..NODES).filter(|node| self.is_outside(*node)) {
            // It fails while the member is being expelled; the next round tries again.
            let _ = self.try_join(node);
        }
    }

    /// Begins with the node that has the most of the history.
    fn found_anew(&mut self) {
        self.single_primary = false;
        let executed = |node: usize| self.run(node, "SELECT @@global.gtid_executed");
        let has_all_of = |node: usize, other: usize| {
            let subset = format!(
                "SELECT GTID_SUBSET('{}', @@global.gtid_executed)",
                executed(other)
            );
            self.run(node, &subset.replace('\n', "")) == "1"
        };
        let first = (0..NODES).find(|node| (0..NODES).all(|other| has_all_of(*node, other)));
        self.found(first.expect("one node has all that was committed"));
    }
}
