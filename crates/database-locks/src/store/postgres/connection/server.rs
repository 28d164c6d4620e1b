//! The state that the connections of a store share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::ServerConfig;
use super::events::Events;
use super::handshake::HANDSHAKE;
use super::session::{Prepared, Session, Statement};
use crate::error::Error;
use crate::store::connect::connector::Connector;
use crate::store::connect::hosts::ConnectFailure;
use crate::store::connect::provider::ServerProvider;
use crate::store::connect::table::{Rows, Table};
use crate::store::connect::url;
use crate::store::postgres::failover;
use crate::store::postgres::statements::fragments::expand;
use protocol::Primary;

/// The database, and what is known about its server.
pub(crate) struct Server {
    pub(crate) connector: Connector<ServerConfig>,
    /// [`HANDSHAKE`], with the name of the table.
    pub(crate) handshake: String,
    /// The statements by name, with the names of the tables.
    texts: HashMap<(Rows, &'static str), Arc<str>>,
    pub(crate) events: Arc<Events>,
    /// Whether the table has been used.
    pub(crate) used: Arc<AtomicBool>,
    /// Whether a pooler has mixed up prepared statements of several clients, so that no statement
    /// is prepared any more.
    pub(crate) pooled: AtomicBool,
    /// Whether the latest attempt to make the background connection failed. If the server allows only
    /// one connection, it must be the one that renews, so there is no direct connection meanwhile.
    pub(crate) background_fails: AtomicBool,
    /// The identity of the server that served last, if it is known.
    primary: Mutex<Option<Primary>>,
}

impl Server {
    pub(crate) fn new(
        server: url::Server,
        source: Arc<ServerProvider>,
        table: &Table,
        statements: &[Statement],
    ) -> Result<Self, Error> {
        let texts = |of: &Statement| {
            let text = expand(of.text);
            [Rows::Locks, Rows::Permits]
                .map(|rows| ((rows, of.name), table.fill_in(rows, &text).into()))
        };
        Ok(Self {
            connector: Connector::new(source, ServerConfig::new(server)?),
            handshake: table.fill(HANDSHAKE),
            texts: statements.iter().flat_map(texts).collect(),
            events: Arc::default(),
            used: Arc::default(),
            pooled: AtomicBool::new(false),
            background_fails: AtomicBool::new(false),
            primary: Mutex::default(),
        })
    }

    /// The statements for a new connection.
    pub(crate) fn statements(&self) -> HashMap<(Rows, &'static str), Prepared> {
        let texts = self.texts.iter();
        texts
            .map(|(key, text)| (*key, Prepared::new(text)))
            .collect()
    }

    pub(crate) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// The identity of the server that served last, if it is known.
    pub(crate) fn latest_primary(&self) -> Option<Primary> {
        *self.primary()
    }

    fn primary(&self) -> MutexGuard<'_, Option<Primary>> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record that the server of this connection serves from now on. If it has replaced another
    /// one, answers the identities of both.
    pub(crate) fn serves(
        &self,
        session: &Session,
    ) -> Result<Option<(Primary, Primary)>, ConnectFailure> {
        let mut primary = self.primary();
        // The other connection of the store may have found a later primary meanwhile.
        failover::no_step_back(&session.address, session.primary, *primary)?;
        self.connector.serves(&session.address);
        let before = *primary;
        *primary = session.primary.or(before);
        Ok(before
            .zip(session.primary)
            .filter(|(before, now)| before != now))
    }

    /// Whether another server has served since that of this connection. If the servers have no
    /// known identity, their addresses are compared.
    pub(crate) fn has_replaced(&self, session: &Session) -> bool {
        let primary = self.primary();
        match (session.primary, *primary) {
            (Some(then), Some(now)) => then != now,
            _ => self.connector.has_moved_from(&session.address),
        }
    }
}
