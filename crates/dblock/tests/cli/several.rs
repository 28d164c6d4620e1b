//! `dblock run` with several names: all locks, or none.

use std::time::Duration;

use rustix::process::Signal;
use testkit::promise;
use testkit::time;

use crate::support::{DBLOCK, Finished, Running, Sandbox};

/// Renewed every 4 s, so that a release by force is noticed soon.
const SHORT: [&str; 4] = ["--ttl", "12s", "--grace", "3s"];

fn start(sandbox: &Sandbox, args: &[&str], script: &str) -> Running {
    let mut command = sandbox.dblock(["run"]);
    command.args(args).args(["--", "sh", "-c", script]);
    sandbox.start(command.env("DBLOCK", DBLOCK))
}

fn run(sandbox: &Sandbox, args: &[&str], script: &str) -> Finished {
    start(sandbox, args, script).end()
}

#[test]
fn the_command_finds_its_grants_as_lists_in_the_order_of_the_names() {
    let sandbox = Sandbox::new();
    let script = r#"printf '%s\n' "$DBLOCK_NAME" "$DBLOCK_TOKEN" "$DBLOCK_GRANT" "$DBLOCK_TICKET" \
        "$DBLOCK_HOLDER" "$DBLOCK_GRANTS"; "$DBLOCK" list --json"#;
    let done = run(&sandbox, &["--holder", "me", "b c", "a", "b c"], script);
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!((lines[0], lines[4]), ("b c,a", "me"));
    let [tokens, grants, tickets] = [1, 2, 3].map(|at| lines[at].split(',').collect::<Vec<&str>>());
    assert_eq!(tickets[0], format!("{}.{}.b%20c", tokens[0], grants[0]));
    assert_eq!(tickets[1], format!("{}.{}.a", tokens[1], grants[1]));
    assert_eq!(lines[5], lines[2]);
    let list = lines[6..].join("\n");
    for grant in grants {
        assert!(list.contains(grant), "{list}");
    }
    assert!(!sandbox.is_held("a") && !sandbox.is_held("b c"));
}

#[test]
fn none_is_held_where_one_is_busy_and_the_message_names_that_one() {
    let sandbox = Sandbox::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done";
    let other = sandbox.start_run(&["--holder", "someone"], "b", script);
    for (wait, said) in [
        ("0", "lock `b` is held by someone for "),
        ("2s", "gave up after 2s: lock `b` is held by someone"),
    ] {
        let done = run(&sandbox, &["-w", wait, "a", "b", "c"], "touch ran");
        assert!(done.dblock_line(75).contains(said), "{done:?}");
    }
    assert_eq!(
        run(&sandbox, &["-n", "-E", "0", "c", "b"], "touch ran").code(),
        0
    );
    assert!(!sandbox.is_held("a") && !sandbox.is_held("c"));
    let waiting = start(&sandbox, &["c", "b", "a"], "exit 7");
    time::sleep(Duration::from_millis(500));
    assert!(!sandbox.is_held("a"), "nothing is held during the wait");
    sandbox.touch("go");
    assert_eq!(other.end().code(), 0);
    assert_eq!(waiting.end().code(), 7);
    assert!(!sandbox.path("ran").exists());
}

/// Each run reads a number, pauses, and writes it back plus one.
#[test]
fn runs_in_opposite_orders_count_without_loss() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("n"), "0").unwrap();
    let script = "n=$(cat n); sleep 0.03; echo $((n + 1)) > n";
    // Contention of more than a second is reported as a notice.
    let sets = [["a", "b"], ["b", "a"], ["b", "c"], ["c", "b"]].map(|[a, b]| ["-q", a, b]);
    let all: Vec<Running> = (0..3)
        .flat_map(|_| sets.each_ref())
        .map(|set| start(&sandbox, set, script))
        .collect();
    let total = all.len();
    for one in all {
        let done = one.end();
        assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    }
    assert_eq!(sandbox.read("n").trim(), total.to_string());
    promise("P1", "sqlite");
}

#[test]
fn an_inner_run_of_one_of_the_locks_is_refused_by_its_name() {
    let sandbox = Sandbox::new();
    for (outer, inner) in [
        (&["a", "b"][..], "b"),
        (&["b"], "a b"),
        (&["c", "b", "a"], "d b"),
    ] {
        let inner = format!(r#"exec "$DBLOCK" run {inner} -- touch ran"#);
        let done = run(&sandbox, outer, &inner);
        let line = done.only_line(2);
        assert!(
            line.contains("lock `b` is held by the `dblock run`"),
            "{done:?}"
        );
    }
    let inner = r#"exec "$DBLOCK" run c d -- sh -c 'exit 3'"#;
    assert_eq!(run(&sandbox, &["a", "b"], inner).code(), 3);
    assert!(!sandbox.path("ran").exists());
}

#[test]
fn the_loss_of_one_stops_the_command_and_frees_the_others() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo termed; exit 0' TERM; touch begun; while :; do sleep 0.02; done";
    let running = start(&sandbox, &[&SHORT[..], &["a", "b", "c"]].concat(), script);
    sandbox.wait_for("begun");
    sandbox.run(["release", "b", "--force"]);
    let done = running.end();
    assert_eq!(done.out, "termed\n");
    let line = done.dblock_line(76);
    assert!(
        line.contains("lock `b` lost ") && line.contains(": released by force; CMD was stopped"),
        "{line}"
    );
    for name in ["a", "b", "c"] {
        assert!(!sandbox.is_held(name), "{name}");
    }
    promise("P4", "sqlite");
}

/// A lock that the command releases by its ticket is no loss; that of another one still is.
#[test]
fn a_command_may_release_one_of_its_locks_and_is_stopped_for_another_one() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" -q release b --ticket "${DBLOCK_TICKET#*,}" || exit 9
        touch begun; while [ ! -e go ]; do sleep 0.02; done"#;
    let args = [&SHORT[..], &["a", "b"]].concat();
    let running = start(&sandbox, &args, script);
    sandbox.wait_for("begun");
    assert!(sandbox.is_held("a") && !sandbox.is_held("b"));
    // A renewal finds the release.
    time::sleep(Duration::from_secs(5));
    sandbox.touch("go");
    let done = running.end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    for file in ["begun", "go"] {
        std::fs::remove_file(sandbox.path(file)).unwrap();
    }
    let running = start(&sandbox, &args, script);
    sandbox.wait_for("begun");
    sandbox.run(["release", "a", "--force"]);
    assert!(running.end().dblock_line(76).contains("lock `a` lost "));
}

/// A killed run leaves its locks until the ttl ends; then one run gets them all.
#[test]
fn the_locks_of_a_killed_run_are_free_together_when_its_ttl_ends() {
    let sandbox = Sandbox::new();
    let args = ["--ttl", "6s", "--grace", "500ms", "a", "b"];
    let running = start(&sandbox, &args, "touch begun; exec sleep 1000");
    sandbox.wait_for("begun");
    running.signal(Signal::KILL);
    let began = time::now();
    let next = run(&sandbox, &["-w", "1m", "b", "a"], "exit 5");
    assert_eq!(next.code(), 5, "{next:?}");
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(20),
        "{took:?}"
    );
    promise("P7", "sqlite");
}

#[test]
fn too_many_names_are_refused_before_any_request() {
    let sandbox = Sandbox::new();
    let names: Vec<String> = (0..101).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let done = run(&sandbox, &names, "touch ran");
    let line = done.only_line(2);
    assert!(
        line.contains("a list of 101, must be 1 to 100 names"),
        "{done:?}"
    );
    assert!(!sandbox.path("ran").exists());
}
