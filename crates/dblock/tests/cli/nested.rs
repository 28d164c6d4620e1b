//! A `dblock run` under another one.

use crate::support::{DBLOCK, Done, Lab};

fn outer(lab: &Lab, name: &str, script: &str) -> Done {
    let mut command = lab.dblock(["run", name, "--", "sh", "-c", script]);
    lab.start(command.env("DBLOCK", DBLOCK)).end()
}

#[test]
fn a_run_of_the_lock_that_an_outer_one_holds_is_refused_at_once() {
    let lab = Lab::new();
    for inner in [
        r#"exec "$DBLOCK" run job -- touch ran"#,
        r#"exec "$DBLOCK" run -n -E 0 job -- touch ran"#,
        r#"exec "$DBLOCK" acquire -w 10m job"#,
        r#"exec "$DBLOCK" run another -- "$DBLOCK" run job -- touch ran"#,
    ] {
        let done = outer(&lab, "job", inner);
        assert!(
            done.refused(2).contains("this one runs under"),
            "{inner}: {done:?}"
        );
    }
    assert!(!lab.path("ran").exists());
    assert!(!lab.is_held("job") && !lab.is_held("another"));
}

#[test]
fn another_lock_or_one_that_was_given_back_may_be_taken_within() {
    let lab = Lab::new();
    for inner in [
        r#"exec "$DBLOCK" run another -- exit 3"#,
        r#""$DBLOCK" -q release job --ticket "$DBLOCK_TICKET" && exec "$DBLOCK" run job -- sh -c 'exit 3'"#,
        r#"exec "$DBLOCK" run job --ticket "$DBLOCK_TICKET" -- sh -c 'exit 3'"#,
    ] {
        let inner = inner.replace("-- exit 3", "-- sh -c 'exit 3'");
        let done = outer(&lab, "job", &inner);
        assert_eq!((done.code(), &*done.err), (3, ""), "{inner}");
    }
}

#[test]
fn the_same_name_in_another_database_is_another_lock() {
    let lab = Lab::new();
    let other = format!("sqlite://{}", lab.path("other.sqlite3").display());
    let inner = format!(r#"exec "$DBLOCK" --url '{other}' run job -- sh -c 'exit 3'"#);
    let done = outer(&lab, "job", &inner);
    assert_eq!((done.code(), &*done.err), (3, ""), "{done:?}");
}
