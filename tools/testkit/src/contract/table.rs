//! The rows: which names are distinct, what a row contains, and when it is deleted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use database_locks::seam::{AcquireCommand, Outcome, PAGE, Rows};
use database_locks::{ListFilter, Ttl};

use super::fixture::{
    LONG, SHORT, StoreFixture, WITHIN, acquire_command, granted, holder_of, info, info_soon, list,
    name, outlived, release, renew, try_once,
};
use crate::promise::promise;

/// Names that look alike are different locks.
pub async fn distinct_names_are_distinct_locks(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let longest = "x".repeat(255);
    let almost = format!("{}y", "x".repeat(254));
    let wide = "𝄞".repeat(255);
    let names = [
        "Job",
        "job",
        "JOB",
        "job ",
        " job",
        "job\t",
        "jöb",
        "jo\u{308}b",
        "jób",
        "ꓙob",
        "ß",
        "ss",
        "SS",
        "'",
        "''",
        "\"",
        "`",
        "*/",
        "/* job",
        "--",
        "; drop table x",
        "\\",
        "\\'",
        "%",
        "_",
        "job%",
        "null",
        "NULL",
        "0",
        "00",
        "𝄞",
        "🔒",
        "\u{200b}job",
        "\u{feff}",
        " ",
        "  ",
        "\n",
        "a.b",
        "æ",
        "ae",
        &longest,
        &almost,
        &wide,
    ];
    for (i, lock) in names.iter().enumerate() {
        granted(&*store, lock, &format!("holder {i}"), LONG).await;
    }
    for (i, lock) in names.iter().enumerate() {
        let holder = holder_of(&*store, lock).await;
        assert_eq!(holder, Some(format!("holder {i}")), "{lock:?}");
    }
    let all = list(&*store, &ListFilter::new()).await;
    let listed: BTreeSet<&str> = all.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(listed, names.into_iter().collect());
    promise("P10", fixture.engine);
}

/// Pruning deletes only locks that were free for long, and the tokens of a name keep growing.
pub async fn pruning_deletes_locks_that_are_free_for_long(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    granted(&*store, "held", "me", LONG).await;
    let endless = granted(&*store, "endless", "me", LONG).await;
    assert!(renew(&*store, &endless, Ttl::Infinite).await.is_renewed());
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    granted(&*store, "expired", "me", SHORT).await;
    let prune = async |idle| {
        let pruned = store.prune(Rows::Locks, idle, false, None, WITHIN).await;
        pruned.expect("an answer").deleted
    };
    outlived(SHORT).await;
    assert_eq!(prune(Duration::from_secs(3600)).await, 0, "not long enough");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let pruned = prune(Duration::from_secs(1)).await;
    if fixture.is_cluster() {
        // A new row begins at the clock of the node that makes it. So pruning spares rows whose
        // token that clock might not have reached yet.
        assert_eq!(pruned, 0);
    } else {
        assert_eq!(pruned, 2);
        let rows = list(&*store, &ListFilter::new()).await;
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["endless", "held"]);
    }
    assert!(granted(&*store, "released", "me", LONG).await.token > released.token);
    promise("P2", fixture.engine);
}

/// One poll answers for many locks, in the order of their names, one of which occurs twice.
pub async fn a_poll_returns_the_holder_or_that_the_lock_may_be_free(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let held = granted(&*store, "held", "me", LONG).await;
    let endless = granted(&*store, "endless", "you", LONG).await;
    assert!(renew(&*store, &endless, Ttl::Infinite).await.is_renewed());
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    granted(&*store, "expired", "me", SHORT).await;
    outlived(SHORT).await;
    let asked = [
        "released",
        "held",
        "no such lock",
        "expired",
        "endless",
        "held",
    ]
    .map(name);
    let look = async |names| store.holders(names, WITHIN).await.expect("an answer");
    let seen = look(&asked).await;
    let holders: Vec<Option<&str>> = (seen.iter())
        .map(|by| by.as_ref().and_then(|by| by.holder.as_deref()))
        .collect();
    // On a cluster no clock ends a lease, only an observation.
    let expired = fixture.is_cluster().then_some("me");
    let me = Some("me");
    assert_eq!(holders, [None, me, None, expired, Some("you"), me]);
    let by = seen[1].as_ref().expect("it is held");
    assert_eq!(by.grant.as_deref(), Some(held.id.as_str()));
    assert_eq!(by.token, Some(held.token));
    assert!(!by.is_legacy && by.free_in.is_some_and(|left| left <= LONG));
    assert_eq!(by.observed_expiry.is_some(), fixture.is_cluster());
    assert_eq!(seen[4].as_ref().and_then(|by| by.free_in), None);
    // The poll changed nothing, and a poll of one name has the same answer.
    let alone = look(&[name("held")]).await;
    assert_eq!(alone[0].as_ref().map(|by| by.token), Some(by.token));
    let again = try_once(&*store, &acquire_command("held", "other", LONG)).await;
    assert!(matches!(again, Outcome::Held(_)), "{again:?}");
    promise("P12", fixture.engine);
}

/// More rows than a page has; filtered by state and name.
pub async fn a_list_is_read_in_pages_and_filtered_where_the_rows_are(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let rows = PAGE as usize + 50;
    let commands: Vec<AcquireCommand> = (0..rows)
        .map(|at| acquire_command(&format!("many {at:04}"), "me", LONG))
        .collect();
    for commands in commands.chunks(500) {
        let outcomes = store.acquire(commands, WITHIN).await.expect("an answer");
        assert!(
            outcomes
                .iter()
                .all(|it| matches!(it, Outcome::Granted { .. }))
        );
    }
    for lock in ["mäny 1", "Many 1", "other"] {
        granted(&*store, lock, "me", LONG).await;
    }
    let free = granted(&*store, "many free", "me", LONG).await;
    release(&*store, &free).await;
    let names = async |filter: ListFilter| -> Vec<String> {
        let found = list(&*store, &filter).await;
        found.iter().map(|row| row.name.to_string()).collect()
    };
    let all = names(ListFilter::new()).await;
    assert_eq!(all.len(), rows + 4);
    assert!(all.is_sorted());
    let many = names(ListFilter::new().prefix("many ")).await;
    assert_eq!(many.len(), rows + 1);
    assert_eq!(many[rows], "many free");
    assert_eq!(names(ListFilter::new().not_free()).await.len(), rows + 3);
    let held = names(ListFilter::new().not_free().prefix("many ")).await;
    assert_eq!(held, many[..rows]);
    assert_eq!(names(ListFilter::new().prefix("mä")).await, ["mäny 1"]);
    for none in ["%", "many_", "\\", "'", "🔒"] {
        assert!(
            names(ListFilter::new().prefix(none)).await.is_empty(),
            "{none}"
        );
    }
}

/// A reader gets the values that the holder wrote.
pub async fn a_reader_sees_what_the_holder_wrote(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    assert_eq!(info(&*store, "job").await, None);
    let metadata: Arc<str> = r#"{"program":"x","meta":{"why":"\"quoted\" \\ 'ä' 🔒"}}"#.into();
    let command = AcquireCommand {
        metadata: Arc::clone(&metadata),
        ..acquire_command("job", "it's \"me\" \\ ä", LONG)
    };
    let Outcome::Granted { token, .. } = try_once(&*store, &command).await else {
        panic!("not granted")
    };
    let row = info_soon(&*fixture.store(), "job").await.expect("a row");
    assert_eq!(row.holder.as_deref(), Some(&*command.holder));
    assert_eq!(
        (row.token, row.grant.as_deref()),
        (token, Some(command.grant.as_str()))
    );
    assert_eq!(row.metadata.as_deref(), Some(&*metadata));
    assert!(row.held_for.is_some_and(|age| age < LONG));
    assert_eq!(row.acquired_at, row.renewed_at);
    let ends = row
        .expires_at
        .expect("an end")
        .duration_since(row.acquired_at.expect("a beginning"));
    let length = ends.expect("after the beginning");
    assert!(
        length.abs_diff(LONG) <= Duration::from_millis(2),
        "{length:?}"
    );
}

/// Making the table again changes nothing, and leaves held locks alone.
pub async fn installing_twice_changes_nothing(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let before = info(&*store, "job").await;
    for client in [&store, &fixture.store()] {
        client.install(WITHIN).await.expect("installs");
    }
    assert_eq!(
        info(&*store, "job").await.map(|row| row.token),
        before.map(|row| row.token)
    );
    assert!(renew(&*store, &grant, LONG).await.is_renewed());
}
