//! Histories written for the tests of the checker.

use super::{Evidence, Kind, LimitChange, Outage, Row, check};
use crate::history::{Event, What};
use crate::target::Mode;

pub(super) const MS: u64 = 1000;

/// A history, with a builder for each event; times are in milliseconds.
#[derive(Default)]
pub(super) struct Story(pub(super) Evidence);

impl Story {
    pub(super) fn new() -> Self {
        let ttl = 1500 * MS;
        Self(Evidence {
            ttl,
            ..Evidence::default()
        })
    }

    pub(super) fn event(mut self, at: u64, process: &str, what: What) -> Self {
        let (at, process) = (at * MS, process.to_owned());
        self.0.events.push(Event { at, process, what });
        self
    }

    pub(super) fn asked(self, at: u64, process: &str) -> Self {
        self.asked_as(at, process, Mode::Exclusive)
    }

    pub(super) fn asked_as(self, at: u64, process: &str, mode: Mode) -> Self {
        let asked = What::Asked {
            request: 1,
            lock: "a".into(),
            mode,
            wait: None,
        };
        self.event(at, process, asked)
    }

    pub(super) fn granted(self, at: u64, process: &str, token: i64) -> Self {
        self.granted_slot(at, process, token, None)
    }

    pub(super) fn granted_slot(
        self,
        at: u64,
        process: &str,
        token: i64,
        slot: Option<u16>,
    ) -> Self {
        let granted = What::Granted {
            request: 1,
            token,
            slot,
        };
        self.event(at, process, granted)
    }

    /// A body that asks for a lock or a permit, and has it from one moment to another.
    pub(super) fn inside(
        self,
        (from, until): (u64, u64),
        process: &str,
        mode: Mode,
        token: i64,
        slot: Option<u16>,
    ) -> Self {
        self.asked_as(from - 1, process, mode)
            .granted_slot(from, process, token, slot)
            .trusted(from + 1, process, 1300)
            .released(until, process)
    }

    /// The operator sets a limit.
    pub(super) fn limited(mut self, at: u64, limit: Option<u32>) -> Self {
        self.0.limits.push(LimitChange {
            lock: "a".into(),
            limit,
            from: at * MS,
            until: (at + 1) * MS,
        });
        self
    }

    pub(super) fn trusted(self, at: u64, process: &str, lasting: u64) -> Self {
        let (before, lasting) = ((at - 1) * MS, lasting * MS);
        let trusted = What::Trusted {
            request: 1,
            before,
            lasting,
        };
        self.event(at, process, trusted)
    }

    pub(super) fn released(self, at: u64, process: &str) -> Self {
        self.event(at, process, What::Releasing { request: 1 })
            .event(
                at + 1,
                process,
                What::Released {
                    request: 1,
                    ok: true,
                },
            )
    }

    pub(super) fn wrote(mut self, at: u64, process: &str, token: i64) -> Self {
        let id = format!("{process} at {at}");
        let place = self.0.rows.len() as i64;
        self.0.rows.push(Row {
            lock: "a".into(),
            place,
            token,
            id: id.clone(),
        });
        *self.0.counters.entry("a".into()).or_default() += 1;
        self.event(
            at,
            process,
            What::Write {
                request: 1,
                id: id.clone(),
            },
        )
        .event(at + 1, process, What::Committing { id: id.clone() })
        .event(at + 2, process, What::Committed { id })
    }

    pub(super) fn outage(mut self, process: Option<&str>, from: u64, until: u64) -> Self {
        self.0.outages.push(Outage {
            process: process.map(str::to_owned),
            from: from * MS,
            until: until * MS,
            killed: false,
        });
        self
    }

    pub(super) fn found(mut self) -> Vec<Kind> {
        self.0.events.sort_by_key(|event| event.at);
        check(&self.0)
            .into_iter()
            .map(|violation| violation.kind)
            .collect()
    }
}
