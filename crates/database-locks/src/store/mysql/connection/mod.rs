//! The connection of the background: the task that owns it, the queue before it, and when it is made
//! anew.
//!
//! A `Conn` of the driver does one thing at a time, so a task owns it and callers queue.

pub(crate) mod session;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::super::StoreError;
use super::super::Table;
use super::super::keep_to;
use crate::error::{Cause, Error};
use crate::runtime::clock;
use crate::store::connect::backoff::Backoff;
use crate::store::connect::hosts::list;
use crate::store::connect::source::{Missing, Source};
use crate::store::connect::tls::{Check, Encrypt, Tls};
use crate::store::connect::url;
use crate::store::connect::url::Address;
use crate::store::mysql::connection::session::Session;
use protocol::BootInstant;

/// How long a connection may take to be made, all hosts of the list included. Longer than the patience
/// of a short lease on purpose: where the way to the server is slow, attempts cut off at 100 ms would
/// never get through.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// What a caller that waits for the connection gets on top of the time that it may take.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// A connection that was idle for this long may have been closed by the server, or forgotten by a
/// firewall: it is asked first, since not every statement may be sent again.
const IDLE: Duration = Duration::from_millis(100);
/// So that a firewall does not forget an idle connection in the first place.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where the server is, or the several of which one can be written to, and what was found out of it.
pub(crate) struct Server {
    /// Where the endpoint is asked for.
    source: Arc<Source>,
    /// As it was said latest.
    endpoint: Mutex<Arc<Endpoint>>,
    pub(crate) table: Table,
    /// Which of the hosts served last: of both connections, which belong on the same one.
    pub(crate) latest: AtomicUsize,
    /// Whether a server was once found fit: a read-only one is then a failover under way.
    pub(crate) greeted: AtomicBool,
    /// Whether it was one of a cluster.
    pub(crate) clustered: AtomicBool,
    /// Whether the table was once found fit: if it is missing after that, it may come back.
    pub(crate) found: AtomicBool,
}

/// Where the server is and how to talk to it.
pub(crate) struct Endpoint {
    /// As the URL and the rest said it.
    said: url::Server,
    tls: Tls,
    pub(crate) hosts: Vec<Host>,
}

/// One way to connect.
pub(crate) struct Host {
    pub(crate) address: Address,
    pub(crate) opts: Opts,
    /// To be taken where the server says that it has no TLS.
    pub(crate) without_tls: Option<Opts>,
}

impl Host {
    /// Whether it goes without TLS, or with no certificate of ours.
    pub(crate) fn is_anonymous(&self) -> bool {
        let tls = self.opts.ssl_opts();
        tls.is_none_or(|tls| tls.client_identity().is_none())
    }
}

impl Endpoint {
    fn new(said: url::Server, tls: Tls) -> Self {
        let host = |(at, address): (usize, &Address)| Host::new(&said, at, address, &tls);
        let hosts = said.addresses.iter().enumerate().map(host).collect();
        Self { said, tls, hosts }
    }

    /// For how long all of the hosts together are tried.
    pub(crate) fn connecting(&self) -> Duration {
        self.said.connecting(CONNECT)
    }

    /// What the user wants run on each new connection.
    pub(crate) fn init_command(&self) -> Option<&str> {
        self.said.init_command.as_deref()
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.said.addresses
    }
}

impl Host {
    fn new(said: &url::Server, at: usize, address: &Address, tls: &Tls) -> Self {
        let common = OptsBuilder::default()
            .user(said.user.clone())
            .pass(said.password_at(at))
            .db_name(said.database.clone())
            // By default the driver asks a server on loopback for its socket and goes there
            // instead.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            // "Affected" rows are those that were found, even if no value of theirs has changed.
            .client_found_rows(true)
            // Known, so that the driver does not ask for them at each connect.
            .max_allowed_packet(Some(1 << 26))
            // The session keeps what it has prepared, and one that the driver closes meanwhile
            // would be of no use.
            .stmt_cache_size(0)
            .wait_timeout(Some(0));
        let (plain, encrypt) = match address {
            Address::Tcp(host, port) => {
                let plain = common.ip_or_hostname(host.clone()).tcp_port(*port);
                (plain, tls.encrypt)
            }
            // The driver would ask for TLS there, and then not begin with it.
            Address::Unix(path) => (common.socket(Some(path.to_string_lossy())), Encrypt::Never),
        };
        let (opts, without_tls) = match encrypt {
            Encrypt::Never => (plain, None),
            Encrypt::IfOffered => (plain.clone().ssl_opts(secured(tls)), Some(plain.into())),
            Encrypt::Always => (plain.ssl_opts(secured(tls)), None),
        };
        Self {
            address: address.clone(),
            opts: opts.into(),
            without_tls,
        }
    }
}

impl Server {
    /// Reads the files of certificates.
    pub(crate) fn new(
        said: url::Server,
        source: Arc<Source>,
        table: &Table,
    ) -> Result<Self, Error> {
        let tls = Tls::new(&said.tls)?;
        Ok(Self {
            source,
            endpoint: Mutex::new(Arc::new(Endpoint::new(said, tls))),
            table: table.clone(),
            latest: AtomicUsize::new(0),
            greeted: AtomicBool::new(false),
            clustered: AtomicBool::new(false),
            found: AtomicBool::new(false),
        })
    }

    /// Where it is, as was said latest.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        let endpoint = self.endpoint.lock();
        Arc::clone(&endpoint.unwrap_or_else(PoisonError::into_inner))
    }

    /// Ask where the server is, and what to log in with. Where no more than the password has changed,
    /// files of certificates are not read again.
    pub(crate) async fn ask(&self) -> Result<Arc<Endpoint>, StoreError> {
        let greeted = self.greeted.load(Ordering::Relaxed);
        let unusable = |said: String| match greeted {
            true => StoreError::Unavailable(said.into()),
            false => StoreError::rejected(said, None),
        };
        let said = self.source.ask().await.map_err(|missing| match missing {
            Missing::Unusable(said) => unusable(said),
            Missing::Later(said) => StoreError::Unavailable(said.into()),
        })?;
        let before = self.endpoint();
        if said == before.said {
            return Ok(before);
        }
        let tls = match said.tls == before.said.tls {
            true => before.tls.clone(),
            false => Tls::new(&said.tls).map_err(|error| unusable(error.chain()))?,
        };
        let endpoint = Arc::new(Endpoint::new(said, tls));
        let mut latest = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Arc::clone(&endpoint);
        Ok(endpoint)
    }

    /// Whether a login that was refused may be let in later: it was let in before, and what it logs
    /// in with changes.
    pub(crate) fn may_log_in_later(&self) -> bool {
        let may_change = self.source.may_change() || self.endpoint().said.password_of_file;
        may_change && self.greeted.load(Ordering::Relaxed)
    }

    /// All hosts, for messages. The driver's own options show the password.
    pub(crate) fn at(&self) -> String {
        list(self.endpoint().addresses())
    }

    /// How long a caller waits who wants to know whether there is a connection.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        within.max(self.endpoint().connecting() + AFTERWARDS)
    }
}

/// What the driver needs to talk TLS.
fn secured(tls: &Tls) -> SslOpts {
    let roots = || tls.roots.iter().map(|root| root.to_vec().into()).collect();
    let checked = || {
        let opts = SslOpts::default().with_disable_built_in_roots(true);
        opts.with_root_certs(roots())
    };
    let opts = match tls.check {
        // Signatures are checked all the same.
        Check::Nothing => SslOpts::default().with_danger_accept_invalid_certs(true),
        // The driver knows that only the name was wrong by looking for this word in the text of the
        // error, where it no longer stands (https://github.com/blackbeam/mysql_async/issues/404). But
        // the name that was asked for does, and the name is looked at last of all.
        Check::Chain => checked()
            .with_danger_skip_domain_validation(true)
            .with_danger_tls_hostname_override(Some("NotValidForName")),
        Check::ChainAndName => checked(),
    };
    opts.with_client_identity(tls.identity.as_ref().map(|identity| {
        let (chain, key) = identity.pem.clone();
        ClientIdentity::new(chain.into(), key.into())
    }))
}

pub(crate) type Promise<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;
type Work = Box<dyn for<'s> FnOnce(Result<&'s mut Session, StoreError>) -> Promise<'s, ()> + Send>;

/// What a caller wants done on the connection.
struct Job {
    deadline: BootInstant,
    work: Work,
}

impl Job {
    fn left(&self) -> Duration {
        self.deadline - clock::now()
    }
}

/// The task that owns the connection at present.
struct Worker {
    task: AbortHandle,
    /// When it began with what it is doing, in nanoseconds; 0: it does nothing, or connects.
    busy_since: Arc<AtomicU64>,
}

/// Set as long as this lives.
pub(crate) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(crate) fn set(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::Release);
        Self(Arc::clone(flag))
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What waits for the connection.
struct Inbox {
    /// Renewals that came before a connection was made.
    first: VecDeque<Job>,
    /// Renewals. They go before all the rest: a lease ends while they wait, and behind a crowd of
    /// acquires there is always one statement more.
    urgent: mpsc::UnboundedReceiver<Job>,
    jobs: mpsc::UnboundedReceiver<Job>,
}

impl Inbox {
    /// None: there will be no more.
    async fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.first.pop_front() {
            return Some(job);
        }
        tokio::select! {
            biased;
            job = self.urgent.recv() => job,
            job = self.jobs.recv() => job,
        }
    }

    /// One that is there already.
    fn try_next(&mut self) -> Option<Job> {
        let first = self.first.pop_front();
        let urgent = || self.urgent.try_recv().ok();
        first.or_else(urgent).or_else(|| self.jobs.try_recv().ok())
    }

    /// Pause before the next attempt to connect. A renewal that comes meanwhile and cannot wait for so long is
    /// told what was said the last time.
    async fn pause(&mut self, pause: Duration, said: Option<&StoreError>) {
        let until = clock::now() + pause;
        let mut over = std::pin::pin!(clock::sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(job) = self.urgent.recv() => match said {
                    Some(said) if until >= job.deadline => (job.work)(Err(said.again())).await,
                    _ => self.first.push_back(job),
                },
            }
        }
    }
}

/// What a [`Line`] and its workers have in common.
struct Shared {
    server: Arc<Server>,
    /// Outlives a worker, so that what waited behind a call that hung is done on a new connection.
    inbox: tokio::sync::Mutex<Inbox>,
    /// Whether there is a connection.
    up: Arc<AtomicBool>,
    /// The connection is to be made anew before the next job.
    renew: AtomicBool,
}

/// A queue of jobs and the connection that they are done on, one after another.
pub(crate) struct Line {
    shared: Arc<Shared>,
    /// Whether one is being made by [`Line::dial`].
    dialled: Arc<AtomicBool>,
    urgent: mpsc::UnboundedSender<Job>,
    jobs: mpsc::UnboundedSender<Job>,
    worker: Mutex<Option<Worker>>,
}

impl Line {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        let (urgent, first) = mpsc::unbounded_channel();
        let (jobs, then) = mpsc::unbounded_channel();
        let inbox = Inbox {
            first: VecDeque::new(),
            urgent: first,
            jobs: then,
        };
        Self {
            shared: Arc::new(Shared {
                server,
                inbox: tokio::sync::Mutex::new(inbox),
                up: Arc::default(),
                renew: AtomicBool::new(false),
            }),
            dialled: Arc::default(),
            urgent,
            jobs,
            worker: Mutex::default(),
        }
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Connect in the background, unless that is done or under way.
    pub(crate) fn dial(&self) {
        if self.is_up() {
            return;
        }
        if !self.dialled.swap(true, Ordering::AcqRel) {
            let under_way = Flag::set(&self.dialled);
            let deadline = clock::now() + self.shared.server.patience(Duration::ZERO);
            let work: Work = Box::new(move |_| {
                drop(under_way);
                Box::pin(std::future::ready(()))
            });
            let _ = self.jobs.send(Job { deadline, work });
        }
        self.employ();
    }

    /// Do the next job on a new connection.
    pub(crate) fn reconnect(&self) {
        self.shared.renew.store(true, Ordering::Release);
    }

    /// Do this in its turn. Once begun it is carried through, even if the caller has gone away.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> Promise<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        self.ask(&self.jobs, within, work).await
    }

    /// The same before all that waits.
    pub(crate) async fn call_first<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> Promise<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        self.ask(&self.urgent, within, work).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        queue: &mpsc::UnboundedSender<Job>,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> Promise<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let (tell, answer) = oneshot::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let done = match session {
                    Ok(session) => work(session).await,
                    Err(failure) => Err(failure.undone()),
                };
                // The caller may have gone away.
                let _ = tell.send(done);
            })
        });
        let deadline = clock::now() + within;
        let reply = async move {
            answer.await.unwrap_or_else(|_| {
                if clock::now() >= deadline {
                    return Err(StoreError::late(within));
                }
                Err(StoreError::Unavailable(
                    "the connection was given up".into(),
                ))
            })
        };
        // Never closed: the inbox is ours.
        let _ = queue.send(Job { deadline, work });
        self.employ();
        let mut late = false;
        let done = keep_to(within, reply, || {
            late = true;
            self.give_up(within);
        });
        let done = done.await;
        let function = self.shared.server.source.waits_for();
        let waited_for = function.filter(|_| late && !self.is_up());
        done.map_err(|failure| match waited_for {
            Some(function) => StoreError::late_for(within, function),
            None => place(&self.shared.server, failure),
        })
    }

    /// Start a worker on the runtime that calls, unless one runs: the runtime of the last one may be gone.
    fn employ(&self) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker
            .as_ref()
            .is_none_or(|worker| worker.task.is_finished())
        {
            let busy_since = Arc::new(AtomicU64::new(0));
            let task = tokio::spawn(serve(Arc::clone(&self.shared), Arc::clone(&busy_since)));
            *worker = Some(Worker {
                task: task.abort_handle(),
                busy_since,
            });
        }
    }

    /// Drop the connection, if it has been busy with one thing for most of that time.
    ///
    /// A caller may also have waited too long because many others came first: then the connection is
    /// as good as ever, and to drop it would make all of them wait longer.
    fn give_up(&self, within: Duration) {
        let hangs = |worker: &mut Worker| {
            let since = BootInstant::from_nanos(worker.busy_since.load(Ordering::Acquire));
            since > BootInstant::ZERO && clock::now() - since >= within / 2
        };
        let worker = self.worker.lock();
        let given_up = worker
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(hangs);
        if let Some(worker) = given_up {
            worker.task.abort();
            self.employ();
        }
    }
}

/// Carry out jobs until the [`Line`] is dropped and none is left.
async fn serve(shared: Arc<Shared>, busy_since: Arc<AtomicU64>) {
    let mut inbox = shared.inbox.lock().await;
    let (mut backoff, mut failure) = (Backoff::default(), None);
    let mut session: Option<(Session, Flag)> = None;
    let mut last_used = clock::now();
    while let Some(job) = inbox.next().await {
        // Nobody waits for it any more.
        if job.left().is_zero() {
            continue;
        }
        if shared.renew.swap(false, Ordering::AcqRel) {
            session = None;
        }
        if let Some((old, _)) = &mut session
            && clock::now() - last_used >= IDLE
            && !old.answers(job.left() / 3).await
        {
            session = None;
        }
        let ready = match &mut session {
            Some((session, _)) => session,
            none => {
                let pause = backoff.pause();
                let made = match failure.take() {
                    // Too early to knock again: what was said the last time still stands.
                    Some(said) if pause >= job.left() => Err(said),
                    said => {
                        inbox.pause(pause, said.as_ref()).await;
                        connect(&shared.server, &mut backoff).await
                    }
                };
                match made {
                    Ok(session) => &mut none.insert((session, Flag::set(&shared.up))).0,
                    Err(said) => {
                        (job.work)(Err(said.again())).await;
                        while let Some(job) = inbox.try_next() {
                            (job.work)(Err(said.again())).await;
                        }
                        failure = Some(said);
                        continue;
                    }
                }
            }
        };
        let left = job.left();
        if left.is_zero() {
            continue;
        }
        busy_since.store(clock::now().as_nanos(), Ordering::Release);
        // A panic of the driver ends this job, and none of those behind it.
        let done = caught(tokio::time::timeout(left, (job.work)(Ok(ready)))).await;
        busy_since.store(0, Ordering::Release);
        if !matches!(done, Ok(Ok(()))) || ready.is_broken() {
            session = None;
        }
        last_used = clock::now();
    }
}

/// Carry out what may panic. The message of a panic, if it did.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(move |context| {
        // After a panic it is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Poll::Ready(Err(text.unwrap_or("for no reason that it gave").to_owned()))
            }
        }
    })
    .await
}

/// What a panic of the driver comes to.
pub(crate) fn panicked(panic: String) -> StoreError {
    StoreError::Unavailable(format!("the MySQL driver panicked: {panic}").into())
}

pub(crate) async fn connect(
    server: &Arc<Server>,
    backoff: &mut Backoff,
) -> Result<Session, StoreError> {
    let made = caught(Session::open(server)).await;
    let made = made.map_err(panicked).flatten();
    match &made {
        Ok(_) => backoff.succeeded(),
        Err(failure) => {
            tracing::trace!("no connection to {}: {failure}", server.at());
            backoff.failed();
        }
    }
    made
}

/// Say which server it was that did not answer.
pub(crate) fn place(server: &Server, failure: StoreError) -> StoreError {
    let named = |said: &str| {
        let endpoint = server.endpoint();
        let mut hosts = endpoint.addresses().iter();
        hosts.any(|host| said.contains(&host.to_string()))
    };
    match failure {
        StoreError::Unavailable(said) if !named(&said.to_string()) => {
            let placed = format!("{}: {said}", server.at());
            StoreError::Unavailable(Cause::of(&said, placed).into())
        }
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::source::Given;

    fn said(url: &str) -> url::Server {
        match url::parse(url) {
            Ok(url::Target::Mysql(server)) => server,
            other => panic!("{other:?}"),
        }
    }

    fn source() -> Arc<Source> {
        Arc::new(Source::new(Given::url("mysql://u@h:3307/d")))
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let panics = async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "of {}", "the driver");
        };
        let said = caught(panics).await.expect_err("it panicked");
        assert!(said.contains("of the driver"), "{said}");
        assert_eq!(caught(async { 7 }).await, Ok(7));
    }

    #[test]
    fn an_answer_stays_one_when_its_server_is_named() {
        let server = Server::new(said("mysql://u@h:3307/d"), source(), &Table::default()).unwrap();
        for said in ["it is read-only", "the server at h:3307 is read-only"] {
            let placed = place(&server, StoreError::cannot_serve(said));
            assert!(placed.is_answer(), "{placed}");
            assert!(placed.to_string().contains("h:3307"), "{placed}");
            let late = place(&server, StoreError::Unavailable(said.into()));
            assert!(!late.is_answer(), "{late}");
            let undone = place(&server, StoreError::cannot_serve(said).undone()).again();
            assert!(undone.is_answer() && undone.is_undone(), "{undone}");
            assert!(!placed.is_undone() && !late.is_undone(), "{placed}");
            let refused = crate::store::connect::hosts::Failure::from(placed);
            assert!(StoreError::from(refused).is_answer(), "{said}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let said = said("mysql://u:hunter2@h:3307/d");
        let store = super::super::Mysql::new(said, source(), &Table::default()).unwrap();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("h:3307") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
