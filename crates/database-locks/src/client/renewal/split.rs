//! Finds the refused leases of a round by bisection.
//!
//! One row that the database refuses makes the whole statement fail. So the round is split in
//! halves repeatedly until each refused lease is alone: per lease about two statements for each
//! doubling of the round. Larger parts go first, so that most leases are renewed after a few
//! statements.
//!
//! If a permission is missing, every part is refused. So if no part has succeeded, a few leases are
//! tried alone first, and if they are all refused, the whole round counts as refused.

use std::collections::VecDeque;

/// The number of leases that are tried alone before the whole round counts as refused.
const SAMPLE: usize = 16;

#[derive(Debug)]
pub(crate) struct Split<T> {
    parts: VecDeque<Vec<T>>,
    /// A part succeeded.
    renewed: bool,
    /// The number of leases that were refused alone.
    alone: usize,
    sampled: bool,
}

impl<T> Split<T> {
    /// `in_halves`: start with two halves, because the whole round failed before.
    pub(crate) fn new(mut round: Vec<T>, in_halves: bool) -> Self {
        let half = if in_halves { round.len() / 2 } else { 0 };
        let rest = round.split_off(half);
        let parts = [round, rest].into_iter().filter(|part| !part.is_empty());
        Self {
            parts: parts.collect(),
            renewed: false,
            alone: 0,
            sampled: false,
        }
    }

    /// The next part to send.
    pub(crate) fn next(&mut self) -> Option<Vec<T>> {
        self.parts.pop_front()
    }

    pub(crate) fn has_renewed(&self) -> bool {
        self.renewed
    }

    /// Record that a part succeeded.
    pub(crate) fn renewed(&mut self) {
        self.renewed = true;
    }

    /// Record that a part was refused. Returns the leases that count as refused: none if the part
    /// is split, the lease if it was alone, or all that are left.
    pub(crate) fn refused(&mut self, mut part: Vec<T>) -> Vec<T> {
        if part.len() > 1 {
            let rest = part.split_off(part.len() / 2);
            self.parts.extend([part, rest]);
            if !self.renewed && !self.sampled && self.parts.len() >= SAMPLE {
                self.sample();
            }
            return Vec::new();
        }
        self.alone += 1;
        if !self.renewed && self.alone >= SAMPLE {
            part.extend(self.rest());
        }
        part
    }

    /// Remove the parts that were not sent.
    pub(crate) fn rest(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.parts).into_iter().flatten()
    }

    /// Put one lease of each of the first parts in front.
    fn sample(&mut self) {
        self.sampled = true;
        let of = self.parts.iter_mut().take(SAMPLE);
        let sample: Vec<T> = of.filter_map(Vec::pop).collect();
        self.parts.retain(|part| !part.is_empty());
        for one in sample {
            self.parts.push_front(vec![one]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Runs a split of `n` leases; returns the refused ones and the number of statements.
    fn refused(n: usize, bad: &BTreeSet<usize>) -> (BTreeSet<usize>, usize) {
        let (mut split, mut refused, mut renewed) = (
            Split::new((0..n).collect(), false),
            BTreeSet::new(),
            BTreeSet::new(),
        );
        let mut statements = 0;
        while let Some(part) = split.next() {
            statements += 1;
            assert!(!part.is_empty());
            if part.iter().any(|one| bad.contains(one)) {
                refused.extend(split.refused(part));
            } else {
                split.renewed();
                renewed.extend(part);
            }
        }
        assert_eq!(refused.len() + renewed.len(), n, "each is settled once");
        assert!(refused.is_disjoint(&renewed));
        (refused, statements)
    }

    #[test]
    fn one_bad_row_of_ten_thousand_is_found_by_some_thirty_statements() {
        for bad in [0, 1, 4_999, 5_000, 9_999] {
            let bad = BTreeSet::from([bad]);
            let (found, statements) = refused(10_000, &bad);
            assert_eq!(found, bad);
            assert!(statements <= 1 + 2 * 14, "{statements}");
        }
    }

    #[test]
    fn where_all_are_refused_few_statements_say_so() {
        for n in [1, 11, 100, 5_000] {
            let (found, statements) = refused(n, &(0..n).collect());
            assert_eq!(found.len(), n);
            assert!(statements <= 3 * SAMPLE, "{statements} for {n}");
        }
    }

    proptest! {
        #[test]
        fn what_is_not_bad_is_renewed(
            n in 1..2_000usize,
            bad in proptest::collection::btree_set(0..2_000usize, 0..SAMPLE),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|bad| *bad < n).collect();
            let (found, statements) = refused(n, &bad);
            prop_assert_eq!(&found, &bad);
            prop_assert!(statements <= 1 + 2 * 12 * bad.len() + SAMPLE, "{}", statements);
        }
    }
}
