//! Which limit of a semaphore was in force when.

use crate::check::evidence::{Evidence, LimitChange};

/// The operator's changes of the limit of one semaphore.
pub(super) struct Limits<'a>(Vec<&'a LimitChange>);

impl<'a> Limits<'a> {
    pub(super) fn of(lock: &str, evidence: &'a Evidence) -> Self {
        let changes = evidence.limits.iter();
        Self(changes.filter(|change| change.lock == lock).collect())
    }

    /// The limits that may have been in force at a moment between `from` and `until`, for a caller
    /// who asks for `own`.
    fn between(&self, own: u32, from: u64, until: u64) -> impl Iterator<Item = u32> {
        // That before a change counts until the change has certainly been made.
        let before = self.0.iter().rposition(|change| change.until <= from);
        let first = match before {
            Some(at) => self.0[at].limit.unwrap_or(own),
            None => own,
        };
        let later = &self.0[before.map_or(0, |at| at + 1)..];
        let begun = later.iter().filter(move |change| change.from <= until);
        [first]
            .into_iter()
            .chain(begun.map(move |change| change.limit.unwrap_or(own)))
    }

    /// The greatest limit between two moments.
    pub(super) fn greatest(&self, own: u32, from: u64, until: u64) -> u32 {
        self.between(own, from, until).max().unwrap_or(own)
    }

    /// The least limit between two moments.
    pub(super) fn least(&self, own: u32, from: u64, until: u64) -> u32 {
        self.between(own, from, until).min().unwrap_or(own)
    }

    /// The moments at which a limit begins or ends.
    pub(super) fn bounds(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|change| [change.from, change.until])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_change_is_under_way_both_limits_count() {
        let change = |limit, from, until| LimitChange {
            lock: "s".into(),
            limit,
            from,
            until,
        };
        let evidence = Evidence {
            limits: vec![change(Some(0), 10, 12), change(None, 20, 22)],
            ..Evidence::default()
        };
        let limits = Limits::of("s", &evidence);
        let at = |moment| {
            let (least, most) = (
                limits.least(3, moment, moment),
                limits.greatest(3, moment, moment),
            );
            (least, most)
        };
        assert_eq!(at(9), (3, 3));
        assert_eq!(at(11), (0, 3));
        assert_eq!(at(12), (0, 0));
        assert_eq!(at(21), (0, 3));
        assert_eq!(at(22), (3, 3));
        assert_eq!(limits.greatest(3, 13, 25), 3);
        assert_eq!(Limits::of("other", &evidence).least(3, 0, 99), 3);
    }
}
