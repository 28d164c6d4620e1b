//! Requests for several locks at once, all or none.

use std::collections::HashMap;
use std::time::Duration;

use crate::messages::{AcquireCommand, Holder, Outcome, Primary};
use crate::row::LockRow;
use crate::values::grant::Token;

/// The outcome of a request for several locks, of which all are granted or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllOutcome {
    /// All are granted, for at least `length` since the request was sent.
    Granted {
        /// The fencing token of each, in the order of the commands.
        tokens: Vec<Token>,
        /// The requested length, or the least that is left if an earlier request made the grants.
        length: Duration,
        /// Whether each was ever shared, as in [`Outcome::Granted`].
        shared: Vec<bool>,
        /// The server that granted them; `None` if the engine does not tell servers apart.
        confirmed_by: Option<Primary>,
    },
    /// None is granted. The holder of each, in the order of the commands. `None`: this lock looks
    /// free. If all look free, another transaction has a row locked or has just created it: try
    /// again soon.
    ///
    /// A holder may be the requested grant itself: an earlier request, whose reply was lost, was
    /// granted all, and one of them has been taken away since. Such grants have to be released.
    NotGranted(Vec<Option<Holder>>),
}

impl AllOutcome {
    /// All are granted: with these tokens, and each was ever shared or not.
    pub fn granted(
        commands: &[AcquireCommand],
        grants: impl IntoIterator<Item = (Token, bool)>,
    ) -> Self {
        let (tokens, shared) = grants.into_iter().unzip();
        Self::Granted {
            tokens,
            length: commands.first().map_or(Duration::ZERO, |it| it.length),
            shared,
            confirmed_by: None,
        }
    }

    /// All are busy: nothing is known about any holder.
    pub fn busy(commands: &[AcquireCommand]) -> Self {
        Self::NotGranted(vec![None; commands.len()])
    }

    /// The outcome of a request that changed no row, according to the present rows.
    pub fn of_rows(commands: &[AcquireCommand], rows: &[LockRow]) -> Self {
        let rows: HashMap<&str, &LockRow> =
            rows.iter().map(|row| (row.name.as_str(), row)).collect();
        let (mut tokens, mut least) = (Vec::with_capacity(commands.len()), Duration::MAX);
        let mut shared = Vec::with_capacity(commands.len());
        let mut holders = Vec::with_capacity(commands.len());
        for command in commands {
            let row = rows.get(command.name.as_str());
            // The reply to an earlier request was lost.
            if let Some(Outcome::Granted {
                token,
                length,
                is_shared,
                ..
            }) = row.map(|row| row.failed_acquire_outcome(command))
            {
                tokens.push(token);
                shared.push(is_shared);
                least = least.min(length);
            }
            holders.push(row.filter(|row| row.is_taken()).map(|row| row.holder()));
        }
        if tokens.len() < commands.len() {
            return Self::NotGranted(holders);
        }
        Self::Granted {
            tokens,
            length: least,
            shared,
            confirmed_by: None,
        }
    }

    /// This outcome, with the server that confirmed it.
    #[must_use]
    pub fn confirmed_by(mut self, server: Option<Primary>) -> Self {
        if let Self::Granted { confirmed_by, .. } = &mut self {
            *confirmed_by = server;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::grant::GrantId;
    use crate::values::name::LockName;

    fn commands() -> [AcquireCommand; 2] {
        [(1, "a"), (2, "b")].map(|(id, name)| AcquireCommand {
            name: LockName::new(name).unwrap(),
            grant: GrantId::of([id; 16]),
            holder: "me".into(),
            length: Duration::from_secs(30),
            metadata: "{}".into(),
            expired_version: None,
            not_within: None,
            kind: Default::default(),
        })
    }

    fn row(command: &AcquireCommand, left: Option<i64>) -> LockRow {
        LockRow {
            name: command.name.to_string(),
            token: 7,
            grant: Some(command.grant.to_string()),
            expires_in: left,
            ..LockRow::default()
        }
    }

    #[test]
    fn all_grants_of_an_earlier_request_are_recognised_and_the_shortest_lease_counts() {
        let [a, b] = commands();
        let mut rows = [row(&b, Some(3_000_000)), row(&a, Some(2_000_000))];
        rows[1].is_shared = true;
        let expected = AllOutcome::Granted {
            tokens: vec![Token::from_db(7); 2],
            length: Duration::from_secs(2),
            shared: vec![true, false],
            confirmed_by: None,
        };
        assert_eq!(AllOutcome::of_rows(&[a, b], &rows), expected);
    }

    #[test]
    fn one_grant_of_two_is_none_and_is_reported_as_a_holder() {
        let [a, b] = commands();
        let grant = a.grant.to_string();
        for other in [None, Some(-1)] {
            let rows = [row(&a, Some(2_000_000)), row(&b, other)];
            let outcome = AllOutcome::of_rows(&[a.clone(), b.clone()], &rows);
            let AllOutcome::NotGranted(holders) = outcome else {
                panic!("{outcome:?}")
            };
            let grants: Vec<_> = holders
                .into_iter()
                .map(|holder| holder.and_then(|holder| holder.grant))
                .collect();
            assert_eq!(grants, [Some(grant.clone()), None]);
        }
        // A row that is missing looks free.
        let rows = [row(&b, Some(1))];
        let AllOutcome::NotGranted(holders) = AllOutcome::of_rows(&[a, b], &rows) else {
            panic!("half of it is granted")
        };
        assert!(holders[0].is_none() && holders[1].is_some());
    }
}
