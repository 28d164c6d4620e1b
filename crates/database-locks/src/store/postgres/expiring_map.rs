//! Keys that expire, each at its own time.

use std::collections::HashMap;
use std::hash::Hash;

use protocol::BootInstant;

pub(crate) struct ExpiringMap<K> {
    pub(crate) of: HashMap<K, BootInstant>,
    /// The number of keys left when expired ones were last removed.
    left: usize,
}

impl<K> Default for ExpiringMap<K> {
    fn default() -> Self {
        let (of, left) = (HashMap::new(), 0);
        Self { of, left }
    }
}

impl<K: Eq + Hash> ExpiringMap<K> {
    pub(crate) fn set(&mut self, key: K, until: BootInstant, now: BootInstant) {
        if self.of.len() > 2 * self.left + 64 {
            self.of.retain(|_, until| now < *until);
            self.left = self.of.len();
        }
        self.of.insert(key, until);
    }

    pub(crate) fn is_past(&self, now: BootInstant) -> bool {
        self.of.values().all(|until| *until <= now)
    }
}
