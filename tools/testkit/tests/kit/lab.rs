//! The program `lab`, by which tests in other languages get their servers.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Killable, require};

/// Long enough for servers to start or end, on a machine that is busy.
const SOON: Duration = Duration::from_secs(120);

fn answer(lab: &Killable) -> Value {
    serde_json::from_str(&lab.expect_line(SOON)).expect("answers are JSON")
}

fn ask(lab: &mut Killable, command: &str) -> Value {
    lab.send_line(command).expect("it reads");
    answer(lab)
}

#[test]
fn the_lab_starts_servers_obeys_and_ends_with_its_input() {
    let mut lab = Killable::spawn(env!("CARGO_BIN_EXE_lab"), ["postgres"]);
    let servers = answer(&lab);
    let there = Some(&servers["postgres"]).filter(|server| !server.is_null());
    let Some(postgres) = require("postgres", "postgres", there) else {
        return;
    };
    let data = postgres["data"].as_str().expect("a path").to_owned();
    assert!(Path::new(&data).is_dir(), "{data}");

    let made = ask(&mut lab, "database postgres");
    let url = made["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with("postgres://"), "{url}");

    assert_eq!(ask(&mut lab, "stop postgres"), json!({ "ok": "stop" }));
    assert_eq!(ask(&mut lab, "start postgres"), json!({ "ok": "start" }));
    assert!(ask(&mut lab, "start postgres")["error"].is_string());

    let proxy = ask(&mut lab, &format!("proxy {url}"));
    let name = proxy["proxy"].as_str().expect("a name").to_owned();
    assert_eq!(ask(&mut lab, &format!("counts {name}"))["connections"], 0);
    assert_eq!(
        ask(&mut lab, &format!("cut {name}")),
        json!({ "ok": "cut" })
    );

    for nonsense in ["hello", "start nobody", "dance postgres"] {
        assert!(ask(&mut lab, nonsense)["error"].is_string(), "{nonsense}");
    }

    lab.close_input();
    assert!(lab.wait(SOON).expect("it ends").success());
    assert!(!Path::new(&data).exists(), "{data} is left behind");
}

#[test]
fn the_lab_has_a_pooler_with_a_server_behind_it() {
    let mut lab = Killable::spawn(env!("CARGO_BIN_EXE_lab"), ["pgbouncer"]);
    let servers = answer(&lab);
    let there = Some(&servers["pgbouncer"]).filter(|server| !server.is_null());
    if require("pgbouncer", "pgbouncer", there).is_none() {
        return;
    }
    let made = ask(&mut lab, "database pgbouncer");
    assert_ne!(made["url"], made["direct_url"]);
    for command in ["kill", "start", "freeze", "thaw"] {
        let done = ask(&mut lab, &format!("{command} pgbouncer"));
        assert_eq!(done, json!({ "ok": command }));
    }
    lab.close_input();
    assert!(lab.wait(SOON).expect("it ends").success());
}

#[test]
#[ignore = "make prove"]
fn a_node_of_a_cluster_obeys_by_its_number() {
    let mut lab = Killable::spawn(env!("CARGO_BIN_EXE_lab"), ["galera"]);
    let servers = answer(&lab);
    let there = Some(&servers["galera"]).filter(|server| !server.is_null());
    let Some(cluster) = require("galera", "galera", there) else {
        return;
    };
    let urls: Vec<&str> = (0..3)
        .filter_map(|node| cluster["nodes"][node]["url"].as_str())
        .collect();
    assert_eq!(urls.len(), 3, "{cluster}");

    let made = ask(&mut lab, "database galera");
    assert_eq!(made["urls"].as_array().map(Vec::len), Some(3), "{made}");
    assert_eq!(ask(&mut lab, "status galera/2")["serves"], true);
    assert_eq!(ask(&mut lab, "kill galera/2"), json!({ "ok": "kill" }));
    assert_eq!(ask(&mut lab, "status galera/2")["serves"], false);
    assert_eq!(ask(&mut lab, "start galera/2"), json!({ "ok": "start" }));
    assert_eq!(ask(&mut lab, "status galera/2")["serves"], true);
    for nonsense in ["kill galera", "kill galera/3", "dance galera/1"] {
        assert!(ask(&mut lab, nonsense)["error"].is_string(), "{nonsense}");
    }
}
