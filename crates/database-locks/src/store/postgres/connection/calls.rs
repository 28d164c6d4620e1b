//! Requests on a connection: their deadlines, and the effect of their answers on the connection.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::blocked;
use super::manager::ConnectionManager;
use super::row_locker;
use super::session::Session;
use crate::store::api::{StoreError, with_deadline};
use crate::store::connect::hosts::ConnectFailure;
use crate::store::postgres::error::{Kind, ServerError};
use protocol::Human;

/// The number of given-up connections whose answers other requests may still await. While the whole
/// table is locked, a connection is given up each 100 ms.
const MAX_ABANDONED: usize = 4;

impl ConnectionManager {
    /// Run work on the connection. The deadline includes connecting.
    pub(crate) async fn run<T>(
        &self,
        within: Duration,
        work: impl AsyncFnOnce(Arc<Session>) -> Result<T, ServerError>,
    ) -> Result<T, StoreError> {
        let work = async |session: Arc<Session>| {
            let mut abandoned = session.abandoned.subscribe();
            tokio::select! {
                biased;
                done = work(session) => done,
                Ok(_) = abandoned.wait_for(|abandoned| *abandoned) => {
                    Err(ServerError::unavailable("the connection was given up, and later ones as well"))
                }
            }
        };
        self.run_long(within, work).await
    }

    /// [`run`](Self::run) for work that may take long, which goes on if other requests on the
    /// connection hang.
    pub(crate) async fn run_long<T>(
        &self,
        within: Duration,
        work: impl AsyncFnOnce(Arc<Session>) -> Result<T, ServerError>,
    ) -> Result<T, StoreError> {
        let (used, mut late) = (OnceLock::new(), false);
        let reply = async {
            let connected = self.connected().await;
            let session = connected.map_err(|failure| StoreError::from(failure).undone())?;
            let _ = used.set(Arc::clone(&session));
            let done = work(Arc::clone(&session)).await;
            self.settled(&session, done)
        };
        let kept = with_deadline(within, reply, || late = true);
        let watch = async {
            tokio::time::sleep(blocked::SLOW.min(within / 2)).await;
            if let Some(session) = used.get() {
                match blocked::watch(&self.0.blocked, &self.0.server, session).await {}
            }
            std::future::pending().await
        };
        let answer = tokio::select! {
            biased;
            answer = kept => answer,
            never = watch => never,
        };
        if !late {
            return answer;
        }
        let Some(session) = used.get() else {
            return Err(self.unconnected(within));
        };
        self.give_up(session);
        let blocked = |by| format!("blocked for {} by {by}", Human(within));
        match self.blocked_by() {
            Some(by) => Err(StoreError::cannot_serve(blocked(by))),
            None => answer,
        }
    }

    /// Run work on a connection of its own, for statements that take locks or may take long: no other
    /// request waits behind them. When the deadline has passed, the statement is cancelled.
    pub(crate) async fn run_apart<T>(
        &self,
        within: Duration,
        work: impl AsyncFnOnce(Arc<Session>) -> Result<T, ServerError>,
    ) -> Result<T, StoreError> {
        let reply = async {
            let connected = self.connected_apart().await;
            let session = connected.map_err(|failure| StoreError::from(failure).undone())?;
            let unanswered = LateUnlessAnswered(&session);
            let done = work(Arc::clone(&session)).await;
            std::mem::forget(unanswered);
            self.settled(&session, done)
        };
        with_deadline(within, reply, || ()).await
    }

    /// Run work on the direct connection: without a deadline, and without a timer once it is
    /// connected.
    pub(crate) async fn run_direct<T>(
        &self,
        work: impl AsyncFnOnce(Arc<Session>) -> Result<T, ServerError>,
    ) -> Result<T, StoreError> {
        let connected = self.connected().await;
        // Not an answer, even if the server answered: no request was sent, and the background
        // connection may serve.
        let unsent =
            |failure: ConnectFailure| StoreError::Unavailable(failure.into_message().into());
        let session = connected.map_err(|failure| unsent(failure).undone())?;
        let unanswered = LateUnlessAnswered(&session);
        let done = work(Arc::clone(&session)).await;
        std::mem::forget(unanswered);
        self.settled(&session, done)
    }

    /// Convert an answer, and retire its connection if it shows that it is broken.
    fn settled<T>(
        &self,
        session: &Arc<Session>,
        done: Result<T, ServerError>,
    ) -> Result<T, StoreError> {
        let server = &self.0.server;
        // An answer of a former primary confirms nothing: the new primary may have granted the lock
        // to another client.
        let done = match server.has_replaced(session) {
            true => Err(ServerError::new(
                Kind::Gone,
                "the answer is of a server that another one has replaced",
            )),
            false => done,
        };
        // The next connection checks the table again, which may have been altered.
        if session.table_error.is_some() {
            self.retire(session);
        }
        done.map_err(|error| {
            if matches!(error.kind, Kind::Gone | Kind::Pooled) {
                self.retire(session);
            }
            if error.kind == Kind::Pooled {
                server.pooled.store(true, Ordering::Relaxed);
            }
            error.settled(server.was_used()).into()
        })
    }

    /// The error if there was no connection in time.
    fn unconnected(&self, within: Duration) -> StoreError {
        let connector = &self.0.server.connector;
        let failure = self.0.state().failure.take();
        let why = match (connector.waits_for(), failure) {
            (Some(function), _) => format!(": {function}"),
            (None, Some(failure)) => format!("; before that, {failure}"),
            (None, None) => String::new(),
        };
        let (hosts, within) = (connector.hosts(), Human(within));
        let message = format!("no connection to {hosts} within {within}{why}");
        StoreError::Unavailable(message.into()).undone()
    }

    /// The session that has a row locked: see [`Store::row_locker`](crate::store::api::Store).
    pub(crate) async fn row_locker(
        &self,
        row: (&str, &str, i32),
        within: Duration,
    ) -> Result<Option<String>, StoreError> {
        let locker = row_locker::row_locker(&self.0.server, row, within);
        with_deadline(within, locker, || ()).await
    }

    /// The session that blocks the statements, if a pending request has found it.
    pub(crate) fn blocked_by(&self) -> Option<String> {
        self.0.blocked.by()
    }

    /// Give up a connection whose answer is late.
    ///
    /// Its statement is cancelled when no caller awaits an answer of the connection. Other callers
    /// may still do so, whose statements were sent before, but only on a limited number of
    /// connections.
    fn give_up(&self, session: &Arc<Session>) {
        session.late.store(true, Ordering::Relaxed);
        self.retire(session);
        let mut state = self.0.state();
        let known = |known: &Weak<_>| known.as_ptr() == Arc::as_ptr(session);
        if !state.given_up.iter().any(known) {
            state.given_up.push_back(Arc::downgrade(session));
        }
        state.given_up.retain(|session| session.strong_count() > 0);
        let abandoned = match state.given_up.len() > MAX_ABANDONED {
            true => state
                .given_up
                .pop_front()
                .and_then(|session| session.upgrade()),
            false => None,
        };
        drop(state);
        if let Some(abandoned) = abandoned {
            abandoned.abandoned.send_replace(true);
        }
    }
}

/// A request without an answer yet. If it is dropped, the connection counts as late.
struct LateUnlessAnswered<'a>(&'a Session);

impl Drop for LateUnlessAnswered<'_> {
    fn drop(&mut self) {
        self.0.late.store(true, Ordering::Relaxed);
    }
}
