//! Functions under `#[locked]`: that they exclude each other, how they fail, and that they stay the
//! functions that they were.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use database_locks::{Error, LockInfo, LockState, Locks, LostReason, Ttl, blocking, locked};

/// Locks of their own for each test.
async fn locks(url: &str) -> Locks {
    Locks::connect(url).await.expect("connects")
}

fn blocking_locks(url: &str) -> blocking::Locks {
    blocking::Locks::connect(url).expect("connects")
}

async fn short_sleep() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

/// The message of a panic.
fn message(panicked: Box<dyn std::any::Any + Send>) -> String {
    *panicked.downcast::<String>().expect("a text")
}

// --- they exclude each other

#[locked(name = format!("invoice {id}"), via = locks)]
async fn most_at_once(locks: &Locks, id: u32, inside: &AtomicU32, most: &AtomicU32) {
    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    short_sleep().await;
    inside.fetch_sub(1, Ordering::SeqCst);
}

#[tokio::test]
async fn calls_with_the_same_name_come_one_after_another() {
    let locks = locks("memory:locked-same").await;
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let call = || most_at_once(&locks, 1, &inside, &most);
    tokio::join!(call(), call(), call());
    assert_eq!(most.into_inner(), 1);
}

/// Returns when all are inside.
#[locked(name = format!("order {id}"), via = locks)]
async fn together(locks: &Locks, id: u32, inside: &tokio::sync::Barrier) {
    inside.wait().await;
}

#[tokio::test]
async fn calls_with_names_of_their_arguments_run_together() {
    let locks = locks("memory:locked-other").await;
    let inside = tokio::sync::Barrier::new(3);
    let call = |id| together(&locks, id, &inside);
    let calls = async { tokio::join!(call(1), call(2), call(3)) };
    let all = tokio::time::timeout(Duration::from_secs(20), calls).await;
    all.expect("none waits for the lock of another");
}

mod jobs {
    use database_locks::{Error, LockInfo, blocking, locked};

    #[locked(via = locks)]
    pub(crate) fn r#type(locks: &blocking::Locks) -> Result<Option<LockInfo>, Error> {
        locks.show("locked::jobs::type")
    }
}

#[test]
fn a_name_is_by_default_that_of_module_and_function() {
    let locks = blocking_locks("memory:locked-default-name");
    assert!(jobs::r#type(&locks).unwrap().is_some());
}

/// The holder of `job`, as any client may read it.
async fn holds(locks: &Locks, name: &str) -> bool {
    let info = locks.show(name).await.expect("reads");
    info.is_some_and(|info| matches!(info.state, LockState::Held { .. }))
}

mod names {
    pub(crate) const REPORT: &str = "report of a constant";
}

const AUDIT: &str = "audit";

#[locked(AUDIT, via = locks)]
async fn named_by_a_constant(locks: &Locks) -> bool {
    holds(locks, "audit").await
}

#[locked(crate::names::REPORT, via = locks)]
async fn named_by_a_path(locks: &Locks) -> bool {
    holds(locks, "report of a constant").await
}

#[locked(concat!("app", "/", "report"), via = locks)]
async fn named_by_a_macro(locks: &Locks) -> bool {
    holds(locks, "app/report").await
}

#[locked("daily", via = locks, once_per = "1d", at_least = Duration::from_secs(60))]
async fn daily(locks: &Locks) -> Result<bool, database_locks::Error> {
    Ok(holds(locks, "daily").await)
}

#[tokio::test]
async fn a_function_runs_once_in_a_period_and_its_lock_rests() {
    let locks = locks("memory:locked-daily").await;
    assert!(daily(&locks).await.unwrap());
    let again = daily(&locks).await;
    assert!(
        matches!(again, Err(database_locks::Error::AlreadyRan { .. })),
        "{again:?}"
    );
    let info = locks.show("daily").await.unwrap().unwrap();
    assert!(matches!(info.state, LockState::Resting { .. }), "{info:?}");
}

#[tokio::test]
async fn a_constant_or_a_macro_is_a_name_too() {
    let locks = locks("memory:locked-const").await;
    assert!(named_by_a_constant(&locks).await);
    assert!(named_by_a_path(&locks).await);
    assert!(named_by_a_macro(&locks).await);
    assert!(Yearly { locks }.close().await);
}

struct Yearly {
    locks: Locks,
}

impl Yearly {
    const NAME: &str = "yearly";

    #[locked(Self::NAME, via = self.locks)]
    async fn close(&self) -> bool {
        holds(&self.locks, "yearly").await
    }
}

// --- how they fail

#[derive(Debug)]
enum Failure {
    Lock(Error),
    Own,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lock(error)
    }
}

type Answer<T> = Result<T, Failure>;

#[locked("job", via = locks, wait = "0")]
async fn tried(locks: &Locks, fail: bool) -> Answer<u32> {
    if fail {
        Err(Failure::Own)?;
    }
    Ok(7)
}

#[locked("job", via = locks, wait = "0")]
fn tried_blocking(locks: &blocking::Locks, fail: bool) -> Result<u32, Failure> {
    if fail {
        return Err(Failure::Own);
    }
    Ok(7)
}

#[tokio::test]
async fn a_busy_lock_is_an_err_of_a_function_that_returns_a_result() {
    let locks = locks("memory:locked-busy").await;
    assert!(matches!(tried(&locks, false).await, Ok(7)));
    assert!(matches!(tried(&locks, true).await, Err(Failure::Own)));
    let _guard = locks.lock("job").acquire().await.unwrap();
    let busy = tried(&locks, false).await;
    assert!(matches!(busy, Err(Failure::Lock(Error::TimedOut { .. }))));
}

#[test]
fn a_busy_lock_is_an_err_of_a_blocking_function() {
    let locks = blocking_locks("memory:locked-busy-blocking");
    assert!(matches!(tried_blocking(&locks, false), Ok(7)));
    assert!(matches!(tried_blocking(&locks, true), Err(Failure::Own)));
    let _guard = locks.lock("job").acquire().unwrap();
    let busy = tried_blocking(&locks, false);
    assert!(matches!(busy, Err(Failure::Lock(Error::TimedOut { .. }))));
}

#[locked("job", via = locks, wait = "0", holder = "the test")]
async fn unfallible(locks: Locks) -> Option<u32> {
    None
}

#[locked("job", via = locks, wait = Duration::ZERO)]
fn unfallible_blocking(locks: Locks) {}

#[tokio::test]
async fn without_a_result_a_busy_lock_panics_with_the_whole_error() {
    let locks = locks("memory:locked-panics").await;
    assert_eq!(unfallible(locks.clone()).await, None);
    let other = locks.lock("job").holder("another");
    let _guard = other.acquire().await.unwrap();
    let calls = [
        tokio::spawn(unfallible(locks.clone())).await.map(drop),
        tokio::task::spawn_blocking(move || unfallible_blocking(locks)).await,
    ];
    for call in calls {
        let message = message(call.expect_err("panics").into_panic());
        assert!(message.contains("held by another"), "{message}");
        assert!(message.contains("returns no `Result`"), "{message}");
    }
}

#[locked("job", via = locks, wait = "0")]
async fn of_the_standard_library(locks: &Locks, fail: bool) -> io::Result<u32> {
    if fail {
        std::fs::metadata("/no such file")?;
    }
    Ok(7)
}

#[locked("job", via = locks, wait = "0")]
fn of_the_standard_library_blocking(locks: &blocking::Locks) -> io::Result<u32> {
    Ok(7)
}

#[tokio::test]
async fn an_io_error_wraps_the_error_of_the_lock() {
    let locks = locks("memory:locked-io").await;
    assert_eq!(of_the_standard_library(&locks, false).await.unwrap(), 7);
    let own = of_the_standard_library(&locks, true).await.unwrap_err();
    assert_eq!(own.kind(), io::ErrorKind::NotFound);
    let _guard = locks.lock("job").acquire().await.unwrap();
    let blocking = blocking::Locks::from(locks.clone());
    let busy = [
        of_the_standard_library(&locks, false).await,
        tokio::task::spawn_blocking(move || of_the_standard_library_blocking(&blocking))
            .await
            .unwrap(),
    ];
    for error in busy.map(Result::unwrap_err) {
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let within = error.downcast::<Error>().expect("is kept");
        assert!(matches!(within, Error::TimedOut { .. }), "{within}");
    }
}

#[locked(name = "x".repeat(256), via = locks)]
async fn of_a_long_name(locks: &Locks) -> Result<(), Error> {
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_too_long_is_an_error_of_the_call() {
    let refused = of_a_long_name(&locks("memory:locked-long").await).await;
    assert!(matches!(
        refused,
        Err(Error::Config {
            setting: "name",
            ..
        })
    ));
}

// --- they lose their lock

#[locked("job", via = locks, ttl = "10s", renew_every = "20ms")]
async fn never_done(locks: &Locks, started: &AtomicBool) -> Result<(), Error> {
    started.store(true, Ordering::SeqCst);
    std::future::pending().await
}

#[tokio::test]
async fn a_future_is_stopped_when_its_lock_is_lost() {
    let locks = locks("memory:locked-lost").await;
    let started = AtomicBool::new(false);
    let stopped = async {
        while !started.load(Ordering::SeqCst) {
            short_sleep().await;
        }
        locks.force_release("job").await.expect("frees it");
    };
    let (ended, ()) = tokio::join!(never_done(&locks, &started), stopped);
    let reason = LostReason::Forced;
    assert!(matches!(ended, Err(Error::Lost { reason: r, .. }) if r == reason));
}

#[locked("job", via = locks)]
fn loses_its_lock(locks: &blocking::Locks, ended: &AtomicBool) -> Result<u32, Error> {
    locks.force_release("job")?;
    ended.store(true, Ordering::SeqCst);
    Ok(7)
}

#[test]
fn a_blocking_function_returns_the_loss_when_it_has_ended() {
    let locks = blocking_locks("memory:locked-robbed");
    let ended = AtomicBool::new(false);
    assert!(matches!(
        loses_its_lock(&locks, &ended),
        Err(Error::Lost { .. })
    ));
    assert!(ended.into_inner());
}

#[locked("job", via = locks)]
async fn panicking(locks: Locks) {
    short_sleep().await;
    panic!("in the body");
}

#[locked("job", via = locks)]
fn panicking_blocking(locks: Locks) {
    panic!("in the body");
}

#[tokio::test]
async fn a_panic_in_the_body_frees_the_lock() {
    let locks = locks("memory:locked-freed").await;
    let in_time = locks.lock("job").wait(Duration::from_secs(10));
    assert!(
        tokio::spawn(panicking(locks.clone()))
            .await
            .unwrap_err()
            .is_panic()
    );
    in_time.acquire().await.unwrap().release().await.unwrap();
    let call = tokio::task::spawn_blocking(move || panicking_blocking(locks));
    assert!(call.await.unwrap_err().is_panic());
    in_time.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_future_that_is_dropped_frees_the_lock() {
    let locks = locks("memory:locked-dropped").await;
    let started = AtomicBool::new(false);
    {
        let mut call = pin!(never_done(&locks, &started));
        let under_way = async {
            while !started.load(Ordering::SeqCst) {
                short_sleep().await;
            }
        };
        tokio::select! {
            ended = &mut call => panic!("{ended:?}"),
            () = under_way => {}
        }
    }
    let in_time = locks.lock("job").wait(Duration::from_secs(10));
    in_time.acquire().await.unwrap().release().await.unwrap();
}

// --- they stay the functions that they were

/// Has locks, and stands for them.
struct Shop {
    locks: Locks,
    shelves: Vec<u32>,
}

impl AsRef<Locks> for Shop {
    fn as_ref(&self) -> &Locks {
        &self.locks
    }
}

impl Shop {
    #[locked("stock", via = self)]
    async fn count(&self) -> usize {
        self.shelves.len()
    }

    #[locked("stock", via = self)]
    fn shelf(&mut self, at: usize) -> &mut u32 {
        &mut self.shelves[at]
    }

    #[locked("stock", via = self.locks)]
    async fn fill(&mut self, (at, by): (usize, u32), mut times: u32) -> Result<&mut u32, Error> {
        while times > 0 {
            times -= 1;
            self.shelves[at] += by;
        }
        Ok(&mut self.shelves[at])
    }

    #[locked("stock", via = &self.locks.clone())]
    fn close(self) -> Vec<u32> {
        self.shelves
    }
}

#[tokio::test]
async fn locked_methods_may_borrow() {
    let locks = locks("memory:locked-methods").await;
    let shelves = vec![1, 2];
    let mut shop = Shop { locks, shelves };
    assert_eq!(shop.count().await, 2);
    *shop.fill((1, 10), 2).await.unwrap() += 1;
    let shelves = tokio::task::spawn_blocking(move || {
        *shop.shelf(0) += 1;
        shop.close()
    });
    assert_eq!(shelves.await.unwrap(), [2, 23]);
}

trait Count {
    #[allow(async_fn_in_trait)]
    async fn count_all(&self) -> usize;
}

impl Count for Shop {
    #[locked("stock", via = self)]
    async fn count_all(&self) -> usize {
        self.count_again().await
    }
}

impl Shop {
    #[locked("stock again", via = self)]
    async fn count_again(&self) -> usize {
        self.shelves.len()
    }
}

/// A trait of futures that are boxed, as most are that have to be `dyn`.
#[async_trait::async_trait]
trait Job {
    async fn run(&self, times: u32) -> bool;

    #[locked("job of each", via = self.locks(), wait = "0")]
    async fn run_as_given(&self) -> Result<bool, Error> {
        Ok(holds(self.locks(), "job of each").await)
    }

    fn locks(&self) -> &Locks;
}

#[async_trait::async_trait]
impl Job for Shop {
    #[locked(name = format!("job {times}"), via = self.locks)]
    async fn run(&self, mut times: u32) -> bool {
        let held = holds(&self.locks, &format!("job {times}")).await;
        times += 1;
        held && times > 0
    }

    fn locks(&self) -> &Locks {
        &self.locks
    }
}

#[async_trait::async_trait(?Send)]
trait LocalJob {
    async fn run(&self, of: Rc<u32>) -> io::Result<u32>;
}

#[async_trait::async_trait(?Send)]
impl LocalJob for Shop {
    #[locked("local", via = self.locks, wait = "0")]
    async fn run(&self, of: Rc<u32>) -> io::Result<u32> {
        assert!(holds(&self.locks, "local").await);
        Ok(*of)
    }
}

#[tokio::test]
async fn a_method_of_an_async_trait_holds_its_lock_while_its_future_runs() {
    let locks = locks("memory:locked-async-trait").await;
    let shop: Box<dyn Job + Send + Sync> = Box::new(Shop {
        locks: locks.clone(),
        shelves: vec![],
    });
    assert!(shop.run(3).await && !holds(&locks, "job 3").await);
    assert!(shop.run_as_given().await.unwrap());
    let guard = locks.lock("job of each").acquire().await.unwrap();
    let busy = shop.run_as_given().await;
    assert!(matches!(busy, Err(Error::TimedOut { .. })));
    guard.release().await.unwrap();
    let local: Box<dyn LocalJob> = Box::new(Shop {
        locks: locks.clone(),
        shelves: vec![],
    });
    assert_eq!(local.run(Rc::new(5)).await.unwrap(), 5);
    let _guard = locks.lock("local").acquire().await.unwrap();
    let busy = local.run(Rc::new(5)).await.unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::TimedOut);
}

#[locked("boxed by hand", via = locks, wait = "0")]
fn boxed_by_hand<'a>(
    locks: &'a Locks,
    seen: &'a AtomicBool,
) -> Pin<Box<dyn Future<Output = Result<bool, Error>> + Send + 'a>> {
    seen.store(true, Ordering::SeqCst);
    if std::ptr::eq(locks, std::ptr::null()) {
        return Box::pin(std::future::ready(Ok(false)));
    }
    Box::pin(async move { Ok(holds(locks, "boxed by hand").await) })
}

#[locked("opaque by hand", via = locks)]
fn opaque_by_hand(locks: &Locks) -> impl Future<Output = io::Result<bool>> + Send {
    async move { Ok(holds(locks, "opaque by hand").await) }
}

#[tokio::test]
async fn a_function_that_returns_a_future_runs_all_of_its_body_under_the_lock() {
    let locks = locks("memory:locked-futures").await;
    let seen = AtomicBool::new(false);
    let call = boxed_by_hand(&locks, &seen);
    assert!(!seen.load(Ordering::SeqCst), "the body has not begun");
    assert!(call.await.unwrap() && seen.load(Ordering::SeqCst));
    assert!(sendable(opaque_by_hand(&locks)).await.unwrap());
    seen.store(false, Ordering::SeqCst);
    let _guard = locks.lock("boxed by hand").acquire().await.unwrap();
    let busy = boxed_by_hand(&locks, &seen).await;
    assert!(matches!(busy, Err(Error::TimedOut { .. })));
    assert!(!seen.load(Ordering::SeqCst), "nor without the lock");
}

/// Counts what it is given.
#[locked("generic", via = locks)]
#[must_use]
async fn generic<'a, T, const N: usize>(
    locks: &Locks,
    first: &'a T,
    rest: [T; N],
    more: impl Iterator<Item = T> + 'a,
) -> (&'a T, usize)
where
    T: Clone + 'a,
{
    (first, 1 + rest.len() + more.count())
}

#[locked("lazy", via = locks)]
fn lazy<'a>(locks: &Locks, of: &'a [u32]) -> Result<impl Iterator<Item = u32> + 'a, Error> {
    if of.is_empty() {
        return Ok(of.iter().map(double as fn(&u32) -> u32));
    }
    Ok(of.iter().map(double as fn(&u32) -> u32))
}

fn double(n: &u32) -> u32 {
    n * 2
}

#[locked("boxed", via = locks)]
async fn boxed(locks: &Locks) -> Result<Box<dyn Fn() -> u32 + Send>, Box<dyn std::error::Error>> {
    let n: u32 = "21".parse()?;
    Ok(Box::new(move || n * 2))
}

#[locked("opaque", via = locks)]
async fn opaque(locks: &Locks) -> impl std::fmt::Display + use<> {
    42
}

/// # Safety
///
/// Safe.
#[locked("unsafe", via = locks)]
#[allow(unsafe_code, reason = "what is tested")]
unsafe fn dangerous(locks: &blocking::Locks) -> u32 {
    42
}

#[locked("never", via = locks, wait = "0")]
async fn forever(locks: Locks) -> ! {
    std::future::pending().await
}

#[locked("never", via = locks, wait = "0")]
fn aborting(locks: &blocking::Locks) -> ! {
    panic!("as it does")
}

#[tokio::test]
#[allow(unsafe_code, reason = "what is tested")]
async fn functions_of_all_kinds_can_be_locked() {
    let locks = locks("memory:locked-kinds").await;
    let counted = generic(&locks, &"a", ["b"], ["c", "d"].into_iter());
    assert_eq!(counted.await, (&"a", 4));
    assert_eq!(boxed(&locks).await.unwrap()(), 42);
    assert_eq!(opaque(&locks).await.to_string(), "42");
    let shop = Shop {
        locks: locks.clone(),
        shelves: vec![],
    };
    assert_eq!(shop.count_all().await, 0);
    let waiting = tokio::time::timeout(Duration::from_millis(50), forever(locks.clone()));
    assert!(waiting.await.is_err());
    let blocking = blocking::Locks::from(locks.clone());
    tokio::task::spawn_blocking(move || {
        assert_eq!(lazy(&locks, &[1]).unwrap().next(), Some(2));
        // SAFETY: it is.
        assert_eq!(unsafe { dangerous(&blocking) }, 42);
        assert!(
            std::thread::spawn(move || aborting(&blocking))
                .join()
                .is_err()
        );
    })
    .await
    .unwrap();
}

#[locked(
    name = name,
    via = locks,
    ttl = Ttl::Infinite,
    wait = patience,
    poll = "20ms",
    renew_every = "1s",
    auto_renew = !lock,
    margin = Duration::from_secs(1),
    holder = error,
    preempt = output > 0,
    metadata = [("output", output), (name, error), ("tags", vec!["a", "b"])],
    crate = core_by_another_name,
)]
async fn with_everything(
    name: String,
    locks: Arc<Locks>,
    patience: Duration,
    lock: bool,
    error: String,
    output: u32,
) -> Result<(String, LockInfo), Error> {
    let info = locks.show(&name).await?.expect("is held");
    assert!(patience.is_zero() && !lock && output == 1);
    Ok((error, info))
}

#[locked("pairs", via = locks, metadata = pairs.clone())]
async fn with_pairs(locks: &Locks, pairs: Vec<(&str, u32)>) -> LockInfo {
    assert_eq!(pairs.len(), 2);
    locks.show("pairs").await.unwrap().expect("is held")
}

use database_locks as core_by_another_name;

#[tokio::test]
async fn macro_arguments_may_use_function_parameters_without_consuming_them() {
    let locks = Arc::new(locks("memory:locked-all").await);
    let (name, who) = ("job".to_owned(), "me".to_owned());
    let call = with_everything(name, locks, Duration::ZERO, false, who, 1);
    let (error, info) = call.await.unwrap();
    assert_eq!((error.as_str(), info.holder.as_deref()), ("me", Some("me")));
    let meta = |info: &LockInfo| {
        let text = info.metadata.as_deref().expect("is there");
        serde_json::from_str::<serde_json::Value>(text).unwrap()["meta"].to_string()
    };
    assert_eq!(meta(&info), r#"{"job":"me","output":1,"tags":["a","b"]}"#);
    let locks = self::locks("memory:locked-all").await;
    let info = with_pairs(&locks, vec![("a", 1), ("b", 2)]).await;
    assert_eq!(meta(&info), r#"{"a":1,"b":2}"#);
}

fn sendable<F: Future + Send>(future: F) -> F {
    future
}

#[tokio::test]
async fn the_future_is_send_if_the_body_is() {
    let locks = locks("memory:locked-send").await;
    let boxed: Box<dyn Future<Output = _> + Send> = Box::new(sendable(tried(&locks, false)));
    assert!(Box::into_pin(boxed).await.is_ok());
    assert_eq!(*not_send(&locks, Rc::new(1)).await, 2);
}

#[locked(name = Rc::new(String::from("rc")).as_str(), via = locks)]
async fn not_send(locks: &Locks, of: Rc<u32>) -> Rc<u32> {
    short_sleep().await;
    Rc::new(*of + 1)
}
