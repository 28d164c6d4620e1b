//! A `dblock run` inside another one.

use crate::support::{DBLOCK, Finished, Sandbox};

fn outer(sandbox: &Sandbox, name: &str, script: &str) -> Finished {
    let mut command = sandbox.dblock(["run", name, "--", "sh", "-c", script]);
    sandbox.start(command.env("DBLOCK", DBLOCK)).end()
}

#[test]
fn a_run_for_the_lock_that_an_outer_run_holds_is_refused_at_once() {
    let sandbox = Sandbox::new();
    for inner in [
        r#"exec "$DBLOCK" run job -- touch ran"#,
        r#"exec "$DBLOCK" run -n -E 0 job -- touch ran"#,
        r#"exec "$DBLOCK" acquire -w 10m job"#,
        r#"exec "$DBLOCK" run another -- "$DBLOCK" run job -- touch ran"#,
    ] {
        let done = outer(&sandbox, "job", inner);
        assert!(
            done.only_line(2).contains("this one runs under"),
            "{inner}: {done:?}"
        );
    }
    assert!(!sandbox.path("ran").exists());
    assert!(!sandbox.is_held("job") && !sandbox.is_held("another"));
}

#[test]
fn a_nested_run_may_take_another_lock_or_one_that_was_released() {
    let sandbox = Sandbox::new();
    for inner in [
        r#"exec "$DBLOCK" run another -- exit 3"#,
        r#""$DBLOCK" -q release job --ticket "$DBLOCK_TICKET" && exec "$DBLOCK" run job -- sh -c 'exit 3'"#,
        r#"exec "$DBLOCK" run job --ticket "$DBLOCK_TICKET" -- sh -c 'exit 3'"#,
    ] {
        let inner = inner.replace("-- exit 3", "-- sh -c 'exit 3'");
        let done = outer(&sandbox, "job", &inner);
        assert_eq!((done.code(), &*done.err), (3, ""), "{inner}");
    }
}

#[test]
fn the_same_name_in_another_database_is_another_lock() {
    let sandbox = Sandbox::new();
    let other = format!("sqlite://{}", sandbox.path("other.sqlite3").display());
    let inner = format!(r#"exec "$DBLOCK" --url '{other}' run job -- sh -c 'exit 3'"#);
    let done = outer(&sandbox, "job", &inner);
    assert_eq!((done.code(), &*done.err), (3, ""), "{done:?}");
}
