//! The Galera cluster does what the tests that stand on it assume.

use std::time::Duration;

use testkit::haproxy::Balance;
use testkit::{Galera, HaProxy, time};

/// Long enough for anything a living cluster does, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(40);

fn count(cluster: &Galera, node: usize, url: &str) -> Option<String> {
    let sql = "SET SESSION wsrep_sync_wait = 1; SELECT count(*) FROM t";
    cluster.query(node, url, sql).ok()
}

/// In one test, since a cluster takes longer to start than all of it to try.
#[test]
#[ignore = "make prove"]
fn the_nodes_hold_the_same_data_and_can_be_broken_and_mended() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = cluster.fresh_database();
    let table = "CREATE TABLE t(a int PRIMARY KEY); INSERT INTO t VALUES (1)";
    cluster.query(0, &url, table).expect("it is empty");
    for node in 0..3 {
        assert_eq!(count(&cluster, node, &url).as_deref(), Some("1"), "{node}");
    }

    for (node, ahead) in [(1, -300), (2, 300), (2, -1000), (2, 0)] {
        cluster.set_clock(node, ahead);
        let clock = cluster.clock(node).expect("it answers");
        assert!((clock - ahead).abs() < 30, "{clock}, not {ahead}");
    }
    assert!(cluster.clock(0).is_some_and(|clock| clock.abs() < 30));

    // A moved connection: of those in turn one is at each node.
    if let Some(proxy) = HaProxy::start(&cluster, Balance::RoundRobin) {
        assert!(time::wait_until(TIMEOUT, || proxy.connections() == [0, 0, 0]));
        let port = cluster.node(0).port().to_string();
        let through = proxy.url(&url);
        assert!(through.contains(&proxy.port().to_string()) && !through.contains(&port));
        let mut open = Vec::new();
        let each = || {
            open.push(std::net::TcpStream::connect(("127.0.0.1", proxy.port())));
            proxy.connections().iter().all(|count| *count > 0)
        };
        assert!(
            time::wait_until(TIMEOUT, each),
            "{:?}\n{}",
            proxy.connections(),
            proxy.server().log_tail()
        );
        proxy.take_out(1);
        assert!(time::wait_until(TIMEOUT, || proxy.connections()[1] == 0));
        proxy.put_back(1);
        drop(open);
    }

    // The one behind is killed, and catches up.
    cluster.kill(1);
    cluster.wait_for_size(0, 2);
    cluster
        .query(0, &url, "INSERT INTO t VALUES (2)")
        .expect("two are a majority");
    cluster.start_node(1);
    assert_eq!(count(&cluster, 1, &url).as_deref(), Some("2"));

    // A node that is cut off answers, and does not serve.
    cluster.isolate(2);
    cluster.wait_until_cut_off(2);
    let refused = cluster
        .query(2, &url, "SELECT * FROM t")
        .expect_err("it is alone");
    assert!(refused.to_string().contains("1047"), "{refused}");
    cluster.wait_for_size(0, 2);
    cluster.rejoin(2);
    cluster.wait_until_serving(2);

    // A frozen one is left out, and taken in again.
    cluster.freeze(0);
    cluster.wait_for_size(1, 2);
    cluster
        .query(1, &url, "INSERT INTO t VALUES (3)")
        .expect("two are a majority");
    cluster.thaw(0);
    cluster.wait_until_healthy();
    assert_eq!(count(&cluster, 0, &url).as_deref(), Some("3"));

    // One of which nothing is left is mended.
    for node in 0..3 {
        cluster.kill(node);
    }
    cluster.mend();
    assert_eq!(count(&cluster, 2, &url).as_deref(), Some("3"));
}
