//! The direct connection: its I/O is driven by the runtime of the caller.

use std::future::ready;
use std::sync::Arc;

use super::connection::manager::ConnectionManager;
use super::connection::session::Session;
use super::notify::Listener;
use super::statements::acquire::acquire;
use super::statements::release::release;
use crate::store::api::{DirectConnection, Reply};
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released};

#[derive(Debug)]
pub(crate) struct PostgresDirect {
    connection: ConnectionManager,
    listener: Listener,
}

impl PostgresDirect {
    pub(crate) fn new(background: &ConnectionManager, listener: &Listener) -> Self {
        Self {
            connection: background.for_direct(),
            listener: listener.clone(),
        }
    }
}

impl DirectConnection for PostgresDirect {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(self.connection.run_direct(|_| ready(Ok(()))))
    }

    fn acquire<'a>(&'a self, commands: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| acquire(&session, commands).await;
            let outcomes = self.connection.run_direct(work).await?;
            self.listener.granted(commands, &outcomes);
            Ok(outcomes)
        })
    }

    fn release<'a>(&'a self, commands: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        self.listener
            .forget(commands.iter().map(|command| &command.grant));
        let work = async move |session: Arc<Session>| release(&session, commands).await;
        Box::pin(self.connection.run_direct(work))
    }

    fn give_up(&self) {
        self.connection.retire_direct();
    }
}
