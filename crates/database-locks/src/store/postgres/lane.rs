//! The lane: takes and releases locks on a connection of its own, driven by the runtime of the caller.

use std::future::ready;

use super::acquire_by;
use super::notify::Listener;
use crate::store::api::{Lane, Reply};
use crate::store::postgres::connection::connector::Link;
use crate::store::postgres::statements::acquire::acquire;
use crate::store::postgres::statements::release::release;
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released};

#[derive(Debug)]
pub(crate) struct Direct {
    link: Link,
    /// The background connection, which listens.
    background: Link,
    listener: Listener,
}

impl Direct {
    pub(crate) fn new(background: &Link, listener: &Listener) -> Self {
        Self {
            link: background.for_lane(),
            background: background.clone(),
            listener: listener.clone(),
        }
    }
}

impl Lane for Direct {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(self.link.directly(|_| ready(Ok(()))))
    }

    fn acquire<'a>(&'a self, asks: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        let outcomes = self
            .link
            .directly(move |on| async move { acquire(&on, asks).await });
        Box::pin(acquire_by(
            (&self.listener, &self.background),
            asks,
            outcomes,
        ))
    }

    fn release<'a>(&'a self, returns: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        self.listener
            .holds_no_more(returns.iter().map(|what| &what.grant));
        Box::pin(
            self.link
                .directly(move |on| async move { release(&on, returns).await }),
        )
    }

    fn give_up(&self) {
        self.link.retire_lane();
    }
}
