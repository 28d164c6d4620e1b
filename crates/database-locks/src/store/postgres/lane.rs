//! The lane: takes and releases locks on a connection of its own, driven by the runtime of the caller.

use std::future::ready;

use super::acquire::acquire;
use super::acquire_by;
use super::bells::Bells;
use super::link::Link;
use super::release::release;
use crate::store::{Ask, Lane, Outcome, Released, Reply, Return};

#[derive(Debug)]
pub(super) struct Direct {
    link: Link,
    /// The background connection, which listens.
    background: Link,
    bells: Bells,
}

impl Direct {
    pub(super) fn new(background: &Link, bells: &Bells) -> Self {
        Self {
            link: background.for_lane(),
            background: background.clone(),
            bells: bells.clone(),
        }
    }
}

impl Lane for Direct {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(self.link.directly(|_| ready(Ok(()))))
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask]) -> Reply<'a, Vec<Outcome>> {
        let outcomes = self
            .link
            .directly(move |on| async move { acquire(&on, asks).await });
        Box::pin(acquire_by((&self.bells, &self.background), asks, outcomes))
    }

    fn release<'a>(&'a self, returns: &'a [Return]) -> Reply<'a, Vec<Released>> {
        self.bells
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
