//! The program `program`, by which tests in other languages get their servers.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{ChildProcess, require};

/// Long enough for servers to start or end, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(120);

fn answer(program: &ChildProcess) -> Value {
    serde_json::from_str(&program.expect_line(TIMEOUT)).expect("answers are JSON")
}

fn ask(program: &mut ChildProcess, command: &str) -> Value {
    program.send_line(command).expect("it reads");
    answer(program)
}

#[test]
fn the_program_starts_servers_obeys_and_ends_with_its_input() {
    let mut program = ChildProcess::spawn(env!("CARGO_BIN_EXE_test-servers"), ["postgres"]);
    let servers = answer(&program);
    let there = Some(&servers["postgres"]).filter(|server| !server.is_null());
    let Some(postgres) = require("postgres", "postgres", there) else {
        return;
    };
    let data = postgres["data"].as_str().expect("a path").to_owned();
    assert!(Path::new(&data).is_dir(), "{data}");

    let made = ask(&mut program, "database postgres");
    let url = made["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with("postgres://"), "{url}");

    assert_eq!(ask(&mut program, "stop postgres"), json!({ "ok": "stop" }));
    assert_eq!(
        ask(&mut program, "start postgres"),
        json!({ "ok": "start" })
    );
    assert!(ask(&mut program, "start postgres")["error"].is_string());

    let proxy = ask(&mut program, &format!("proxy {url}"));
    let name = proxy["proxy"].as_str().expect("a name").to_owned();
    assert_eq!(
        ask(&mut program, &format!("counts {name}"))["connections"],
        0
    );
    assert_eq!(
        ask(&mut program, &format!("cut {name}")),
        json!({ "ok": "cut" })
    );

    for nonsense in ["unknown", "start unknown", "unknown postgres"] {
        assert!(
            ask(&mut program, nonsense)["error"].is_string(),
            "{nonsense}"
        );
    }

    program.close_input();
    assert!(program.wait(TIMEOUT).expect("it ends").success());
    assert!(!Path::new(&data).exists(), "{data} is left behind");
}

#[test]
fn the_pooler_has_a_server_behind_it() {
    let mut program = ChildProcess::spawn(env!("CARGO_BIN_EXE_test-servers"), ["pgbouncer"]);
    let servers = answer(&program);
    let there = Some(&servers["pgbouncer"]).filter(|server| !server.is_null());
    if require("pgbouncer", "pgbouncer", there).is_none() {
        return;
    }
    let made = ask(&mut program, "database pgbouncer");
    assert_ne!(made["url"], made["direct_url"]);
    for command in ["kill", "start", "freeze", "thaw"] {
        let done = ask(&mut program, &format!("{command} pgbouncer"));
        assert_eq!(done, json!({ "ok": command }));
    }
    program.close_input();
    assert!(program.wait(TIMEOUT).expect("it ends").success());
}

#[test]
#[ignore = "make prove"]
fn nodes_of_a_cluster_are_addressed_by_number() {
    let mut program = ChildProcess::spawn(env!("CARGO_BIN_EXE_test-servers"), ["galera"]);
    let servers = answer(&program);
    let there = Some(&servers["galera"]).filter(|server| !server.is_null());
    let Some(cluster) = require("galera", "galera", there) else {
        return;
    };
    let urls: Vec<&str> = (0..3)
        .filter_map(|node| cluster["nodes"][node]["url"].as_str())
        .collect();
    assert_eq!(urls.len(), 3, "{cluster}");

    let made = ask(&mut program, "database galera");
    assert_eq!(made["urls"].as_array().map(Vec::len), Some(3), "{made}");
    assert_eq!(ask(&mut program, "status galera/2")["serves"], true);
    assert_eq!(ask(&mut program, "kill galera/2"), json!({ "ok": "kill" }));
    assert_eq!(ask(&mut program, "status galera/2")["serves"], false);
    assert_eq!(
        ask(&mut program, "start galera/2"),
        json!({ "ok": "start" })
    );
    assert_eq!(ask(&mut program, "status galera/2")["serves"], true);
    for nonsense in ["kill galera", "kill galera/3", "unknown galera/1"] {
        assert!(
            ask(&mut program, nonsense)["error"].is_string(),
            "{nonsense}"
        );
    }
}
