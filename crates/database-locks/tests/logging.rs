//! What is logged, at which level, with which fields, and how often.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, Once};
use std::time::Duration;

use database_locks::{Locks, LostReason};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// One line, or one span that was closed.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    fields: Fields,
    /// The names of the spans around it, the innermost first.
    within: Vec<&'static str>,
}

#[derive(Clone, Debug, Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl Line {
    fn get(&self, field: &str) -> &str {
        self.fields.0.get(field).map_or("", String::as_str)
    }

    fn says(&self, what: &str) -> bool {
        self.get("message").contains(what)
    }
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

struct Capture;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, on: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        on.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, on: Context<'_, S>) {
        let span = on.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        values.record(extensions.get_mut::<Fields>().unwrap());
    }

    fn on_event(&self, event: &Event<'_>, on: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let within = on.event_scope(event).into_iter().flatten();
        LINES.lock().unwrap().push(Line {
            level: *event.metadata().level(),
            fields,
            within: within.map(|span| span.name()).collect(),
        });
    }

    fn on_close(&self, id: Id, on: Context<'_, S>) {
        let span = on.span(&id).unwrap();
        let mut fields = span.extensions().get::<Fields>().cloned().unwrap();
        fields.0.insert("span", span.name().to_owned());
        LINES.lock().unwrap().push(Line {
            level: *span.metadata().level(),
            fields,
            within: Vec::new(),
        });
    }
}

fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Capture).init());
}

/// What was logged about one lock.
fn lines(name: &str) -> Vec<Line> {
    let all = LINES.lock().unwrap();
    let fits = all.iter().filter(|line| line.get("lock.name") == name);
    fits.cloned().collect()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(ms(10)).await;
        }
    };
    tokio::time::timeout(ms(20_000), wait)
        .await
        .expect("in time");
}

#[tokio::test]
async fn acquire_renewal_and_release_are_logged_at_debug_with_their_fields() {
    capture();
    let locks = Locks::connect("memory:quiet").await.unwrap();
    let lock = locks.lock("quiet").holder("me").ttl(ms(10_000));
    let lock = lock.renew_every(ms(100));
    let (token, work) = lock
        .run(async {
            tracing::info!(lock.name = "quiet", "at work");
            let row = locks.show("quiet").await.unwrap().unwrap();
            // Through some renewals.
            tokio::time::sleep(ms(300)).await;
            (row.token.to_string(), ())
        })
        .await
        .unwrap();
    let () = work;
    let lines = lines("quiet");
    let one = |what: &str| {
        let mut these = lines.iter().filter(|line| line.says(what));
        let line = these.next().unwrap_or_else(|| panic!("{what}: {lines:#?}"));
        assert!(these.next().is_none(), "{what} once: {lines:#?}");
        line
    };
    for (what, timed) in [
        ("lock acquired", "lock.waited_ms"),
        ("lock released", "lock.held_ms"),
    ] {
        let line = one(what);
        assert_eq!(line.level, Level::DEBUG);
        assert_eq!(
            (line.get("lock.holder"), line.get("lock.token")),
            ("me", &*token)
        );
        assert!(line.get(timed).parse::<u64>().is_ok(), "{line:?}");
    }
    assert_eq!(one("lock acquired").within, ["acquire"]);
    assert_eq!(one("at work").within, ["locked"], "the work's own lines");
    let closed = |span: &str| lines.iter().find(|line| line.get("span") == span).unwrap();
    for span in ["acquire", "locked"] {
        assert_eq!(closed(span).get("lock.token"), token);
        assert_eq!(closed(span).get("lock.holder"), "me");
    }
    assert!(!closed("acquire").get("lock.waited_ms").is_empty());
    // Three lines and two spans: renewals that succeed are not logged.
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[tokio::test]
async fn a_waiter_logs_each_holder_once() {
    capture();
    let locks = Locks::connect("memory:waiter").await.unwrap();
    let take = async |holder: &str| locks.lock("waiter").holder(holder).acquire().await.unwrap();
    let first = take("first").await;
    let others = Locks::connect("memory:waiter").await.unwrap();
    let waiter = tokio::spawn(async move { others.lock("waiter").holder("last").acquire().await });
    let logged = |who: &str| {
        let all = lines("waiter");
        let logged = all
            .iter()
            .filter(|l| l.says("waiting") && l.get("lock.holder") == who);
        logged
            .map(|line| assert_eq!(line.level, Level::DEBUG))
            .count()
    };
    until(|| logged("first") == 1).await;
    // Many polls later.
    tokio::time::sleep(ms(400)).await;
    assert_eq!(logged("first"), 1);
    first.release().await.unwrap();
    waiter.await.unwrap().unwrap().release().await.unwrap();
    assert_eq!((logged("first"), logged("last")), (1, 0));
}

#[tokio::test]
async fn a_loss_is_a_warning_with_its_reason() {
    capture();
    let locks = Locks::connect("memory:loss").await.unwrap();
    let lock = locks.lock("loss").ttl(ms(10_000)).renew_every(ms(100));
    let guard = lock.acquire().await.unwrap();
    locks.force_release("loss").await.unwrap();
    assert_eq!(guard.lost().await.reason(), LostReason::Forced);
    until(|| lines("loss").iter().any(|line| line.says("lock lost"))).await;
    let all = lines("loss");
    let lost: Vec<_> = all.iter().filter(|line| line.says("lock lost")).collect();
    assert_eq!((lost.len(), lost[0].level), (1, Level::WARN));
    assert!(
        lost[0]
            .says(": released by force; its holder was notified, and there is nothing to release"),
        "{lost:#?}"
    );
    assert_eq!(lost[0].get("lock.lost_reason"), "forced");
    assert!(lost[0].get("lock.held_ms").parse::<u64>().is_ok());
    assert_eq!(lost[0].get("lock.now_holder"), "", "it is free");
    assert_eq!(lost[0].get("lock.token"), guard.token().to_string());
}

#[tokio::test]
async fn a_loss_to_another_client_names_the_new_holder() {
    capture();
    let locks = Locks::connect("memory:robbed").await.unwrap();
    let others = Locks::connect("memory:robbed").await.unwrap();
    // Without a renewal, which could find the release by force before the next holder is there.
    let lock = locks.lock("robbed").ttl(ms(15_000)).auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    others.force_release("robbed").await.unwrap();
    let lock = others.lock("robbed").holder("web\n2");
    let next = lock.acquire().await.unwrap();
    guard.check().await.unwrap_err();
    let all = lines("robbed");
    let lost: Vec<_> = all.iter().filter(|line| line.says("lock lost")).collect();
    assert_eq!(lost.len(), 1, "{all:#?}");
    assert_eq!(lost[0].get("lock.now_holder"), "web\n2");
    // It is theirs to choose: no line of its own comes of it.
    assert!(lost[0].says("(now held by web\\n2 for "), "{lost:#?}");
    next.release().await.unwrap();
}

/// An unreachable database is logged once, and once when it is back; not for each attempt.
#[tokio::test]
async fn an_outage_is_logged_in_two_lines() {
    capture();
    let dir = tempfile::tempdir().unwrap();
    let (there, away) = (dir.path().join("there"), dir.path().join("away"));
    std::fs::create_dir(&there).unwrap();
    let url = format!("sqlite://{}/locks.sqlite3", there.display());
    let locks = Locks::connect(url).await.unwrap();
    let lock = locks.lock("outage").ttl(ms(10_000)).renew_every(ms(500));
    let guard = lock.acquire().await.unwrap();

    std::fs::rename(&there, &away).unwrap();
    // A renewal that waits for an answer, on a busy machine, would be an outage of its own.
    tokio::time::sleep(ms(2_000)).await;
    std::fs::rename(&away, &there).unwrap();
    let again = || {
        let all = LINES.lock().unwrap();
        let again = all.iter().filter(|line| line.says("get through again"));
        again
            .inspect(|line| assert_eq!(line.level, Level::INFO))
            .count()
    };
    until(|| again() > 0).await;
    tokio::time::sleep(ms(200)).await;
    assert_eq!(again(), 1);
    assert!(guard.is_held());
    guard.release().await.unwrap();

    let all = lines("outage");
    let fail: Vec<_> = all
        .iter()
        .filter(|line| line.says("renewals fail"))
        .collect();
    assert_eq!((fail.len(), fail[0].level), (1, Level::WARN), "{fail:#?}");
    assert!(fail[0].says("locks.sqlite3"), "it says why: {fail:#?}");
}

/// Twenty waits for a database that is away are one warning, and the end of the outage is one line.
#[tokio::test]
async fn waits_for_an_unreachable_database_are_logged_once() {
    let Some(db) = testkit::TestDb::postgres() else {
        return;
    };
    capture();
    let proxy = testkit::Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    proxy.refuse(true);
    proxy.cut();
    let waits: Vec<_> = (0..20)
        .map(|i| {
            let lock = locks.lock(format!("away {i}")).wait(ms(20_000));
            tokio::spawn(async move { lock.acquire().await })
        })
        .collect();
    let logged = |event: &str| {
        let all = LINES.lock().unwrap();
        let fits = |line: &&Line| line.get("event") == event;
        all.iter().filter(fits).cloned().collect::<Vec<_>>()
    };
    until(|| !logged("unavailable").is_empty()).await;
    tokio::time::sleep(ms(1_000)).await;
    let warnings = logged("unavailable");
    assert_eq!(
        (warnings.len(), warnings[0].level),
        (1, Level::WARN),
        "{warnings:#?}"
    );
    assert!(warnings[0].says("waiting for lock `away "), "{warnings:#?}");
    proxy.refuse(false);
    for wait in waits {
        drop(wait.await.unwrap().unwrap());
    }
    let over = logged("available");
    assert_eq!((over.len(), over[0].level), (1, Level::INFO), "{over:#?}");
}

/// After ten seconds, once for the waiters of a process, with the holder and how long it has held
/// the lock.
#[tokio::test]
async fn a_long_wait_is_logged_with_the_holder() {
    capture();
    let locks = Locks::connect("memory:lasts").await.unwrap();
    let others = Locks::connect("memory:lasts").await.unwrap();
    let guard = locks.lock("lasts").holder("first").acquire().await.unwrap();
    let waits: Vec<_> = (0..5)
        .map(|_| {
            let lock = others.lock("lasts").wait(ms(30_000));
            tokio::spawn(async move { lock.acquire().await?.release().await })
        })
        .collect();
    let logged = || {
        let logged = lines("lasts").into_iter();
        logged
            .filter(|line| line.get("event") == "waiting")
            .collect::<Vec<_>>()
    };
    until(|| !logged().is_empty()).await;
    // By now this record is due for each of the other waits.
    tokio::time::sleep(ms(1_000)).await;
    guard.release().await.unwrap();
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    let logged = logged();
    assert_eq!(
        (logged.len(), logged[0].level),
        (1, Level::INFO),
        "{logged:#?}"
    );
    // On a busy machine it may be logged a little later than after ten seconds.
    let waited = |field| logged[0].get(field).parse::<u64>().unwrap();
    assert!(waited("lock.waited_ms") >= 10_000, "{logged:#?}");
    assert!(waited("lock.held_ms") >= 10_000, "{logged:#?}");
    assert!(
        logged[0].says("still waiting for lock `lasts` after 1")
            && logged[0].says("s, held by first for 1"),
        "{logged:#?}"
    );
    assert_eq!(logged[0].get("lock.holder"), "first");
}
