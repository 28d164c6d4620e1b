//! Calls on a connection: their deadlines, and what their answers mean for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::blocked;
use super::manager::{ConnectionManager, Role};
use super::session::Session;
use crate::store::api::{StoreError, with_deadline};
use crate::store::connect::hosts::ConnectFailure;
use crate::store::postgres::error::{Kind, ServerError};
use protocol::Human;

/// How many connections that were given up may still owe answers to others. A table that is locked
/// as a whole makes one each 100 ms, and waiters inside it are patient.
const MAX_ABANDONED: usize = 4;

impl ConnectionManager {
    /// Do some work on the connection, within a time that includes making it.
    pub(crate) async fn run<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let work = |on: Arc<Session>| async move {
            let mut abandoned = on.abandoned.subscribe();
            tokio::select! {
                biased;
                done = work(on) => done,
                Ok(_) = abandoned.wait_for(|abandoned| *abandoned) => {
                    Err(ServerError::unavailable("the connection was given up, and others after it"))
                }
            }
        };
        self.run_long(within, work).await
    }

    /// The same for work that may take long, even if other calls on the connection hang.
    pub(crate) async fn run_long<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let (used, mut late) = (OnceLock::new(), false);
        let reply = async {
            let connected = self.connected().await;
            let on = connected.map_err(|failure| StoreError::from(failure).undone())?;
            let _ = used.set(Arc::clone(&on));
            let done = work(Arc::clone(&on)).await;
            self.settled(&on, done)
        };
        let kept = with_deadline(within, reply, || late = true);
        let watch = async {
            tokio::time::sleep(blocked::SLOW.min(within / 2)).await;
            if let (Some(on), Role::Background { blocked, .. }) = (used.get(), &self.0.role) {
                match blocked::watch(blocked, &self.0.server, on).await {}
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
        let Some(on) = used.get() else {
            return Err(self.unconnected(within));
        };
        self.give_up(on);
        let blocked = |by| format!("blocked for {} by {by}", Human(within));
        match self.blocked_by() {
            Some(by) => Err(StoreError::cannot_serve(blocked(by))),
            None => answer,
        }
    }

    /// Do some work for the direct connection: without a deadline, and without a timer once there
    /// is a connection.
    pub(crate) async fn run_direct<T, F>(
        &self,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let connected = self.connected().await;
        // Even if the server answered: nothing was sent, and the background may have a connection.
        let unsent =
            |failure: ConnectFailure| StoreError::Unavailable(failure.into_message().into());
        let on = connected.map_err(|failure| unsent(failure).undone())?;
        let unanswered = Unanswered(&on);
        let done = work(Arc::clone(&on)).await;
        std::mem::forget(unanswered);
        self.settled(&on, done)
    }

    /// What an answer means, and what it means for the connection that it came on.
    fn settled<T>(&self, on: &Arc<Session>, done: Result<T, ServerError>) -> Result<T, StoreError> {
        let server = &self.0.server;
        // An old primary that answers after another has replaced it confirms nothing: the new one
        // may have given the lock to another client.
        let done = match server.has_replaced(on) {
            true => Err(ServerError::new(
                Kind::Gone,
                "it was answered by a server that another one has replaced since",
            )),
            false => done,
        };
        // The next connection looks at the table anew: it may have been altered.
        if on.table_error.is_some() {
            self.retire(on);
        }
        done.map_err(|error| {
            if matches!(error.kind, Kind::Gone | Kind::Pooled) {
                self.retire(on);
            }
            if error.kind == Kind::Pooled {
                server.pooled.store(true, Ordering::Relaxed);
            }
            error.settled(server.was_used()).into()
        })
    }

    /// No connection was made in time.
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

    /// What blocks the statements, if a call that is under way has found that out.
    pub(crate) fn blocked_by(&self) -> Option<String> {
        match &self.0.role {
            Role::Background { blocked, .. } => blocked.by(),
            Role::DirectConnection { .. } => None,
        }
    }

    /// An answer did not come in time.
    ///
    /// What hangs is cancelled when no caller waits for an answer any more. Other callers may,
    /// whose statements were sent before it, so only so many connections may be waited for.
    fn give_up(&self, on: &Arc<Session>) {
        on.late.store(true, Ordering::Relaxed);
        self.retire(on);
        let mut state = self.0.state();
        let known = |known: &Weak<_>| known.as_ptr() == Arc::as_ptr(on);
        if !state.given_up.iter().any(known) {
            state.given_up.push_back(Arc::downgrade(on));
        }
        state.given_up.retain(|on| on.strong_count() > 0);
        let abandoned = match state.given_up.len() > MAX_ABANDONED {
            true => state.given_up.pop_front().and_then(|on| on.upgrade()),
            false => None,
        };
        drop(state);
        if let Some(abandoned) = abandoned {
            abandoned.abandoned.send_replace(true);
        }
    }
}

/// A call that its connection has not answered yet. Dropped, it makes the connection count as late.
struct Unanswered<'a>(&'a Session);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.late.store(true, Ordering::Relaxed);
    }
}
