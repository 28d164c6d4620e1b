//! What the processes contend for: locks, semaphores, locks that readers share, and the lock of a
//! guarded table.

use serde_json::{Map, Value, json};

/// How many permits the operator adds at most to those that the callers ask for.
pub const RAISED_BY: u32 = 2;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A lock with one holder.
    Lock,
    /// A semaphore; all callers ask for this limit.
    Semaphore(u32),
    /// A lock that readers hold together, and a writer alone.
    Shared,
    /// A lock with one holder, which guards a table: its holders write there, and use no fence.
    Guarded,
}

/// A name, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name of the lock or semaphore.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
}

/// How a process asks for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The lock for itself alone.
    Exclusive,
    /// The lock together with other readers.
    Shared,
    /// A permit of a semaphore with this limit.
    Permit(u32),
}

impl Mode {
    /// Whether holders in these modes must not hold one lock, or one slot, at the same moment.
    pub fn conflicts(self, other: Self) -> bool {
        self != Self::Shared || other != Self::Shared
    }
}

impl Target {
    /// So many locks: `a`, `b`, and so on.
    pub fn locks(count: usize) -> Vec<Self> {
        let lock = |number| Self {
            name: char::from(b'a' + number as u8).to_string(),
            kind: Kind::Lock,
        };
        (0..count).map(lock).collect()
    }

    /// A semaphore.
    pub fn semaphore(permits: u32) -> Self {
        Self {
            name: "s".into(),
            kind: Kind::Semaphore(permits),
        }
    }

    /// A lock for readers and writers.
    pub fn shared() -> Self {
        Self {
            name: "rw".into(),
            kind: Kind::Shared,
        }
    }

    /// The lock of the guarded table.
    pub fn guarded() -> Self {
        Self {
            name: "g".into(),
            kind: Kind::Guarded,
        }
    }

    /// How often a process chooses it: one process is not enough to contend for a permit, nor two for
    /// a lock that readers share.
    pub fn weight(&self) -> u64 {
        match self.kind {
            Kind::Lock => 1,
            Kind::Semaphore(_) | Kind::Guarded => 2,
            Kind::Shared => 3,
        }
    }

    /// What has a counter of its own, as the fence of a grant protects it: the lock, or each slot
    /// that a permit can have.
    pub fn resources(&self) -> Vec<String> {
        match self.kind {
            Kind::Lock | Kind::Shared | Kind::Guarded => vec![self.name.clone()],
            Kind::Semaphore(permits) => (0..permits + RAISED_BY)
                .map(|slot| slot_name(&self.name, slot as u16))
                .collect(),
        }
    }

    /// The targets as the settings of a worker have them: Python workers read `locks` only.
    pub fn to_json(targets: &[Self]) -> Map<String, Value> {
        let (mut locks, mut semaphores, mut shared) = (Vec::new(), Map::new(), Vec::new());
        let mut guarded = Vec::new();
        for Self { name, kind } in targets {
            match kind {
                Kind::Lock => locks.push(name.as_str()),
                Kind::Semaphore(permits) => drop(semaphores.insert(name.clone(), json!(permits))),
                Kind::Shared => shared.push(name.as_str()),
                Kind::Guarded => guarded.push(name.as_str()),
            }
        }
        let all = [
            ("locks".to_owned(), json!(locks)),
            ("semaphores".to_owned(), Value::Object(semaphores)),
            ("shared".to_owned(), json!(shared)),
            ("guarded".to_owned(), json!(guarded)),
        ];
        all.into_iter().collect()
    }

    /// Reads them.
    pub fn parse(settings: &Value) -> Option<Vec<Self>> {
        let named = |key: &str, kind| {
            let names = settings[key].as_array()?.iter();
            let target = |name: &Value| {
                let name = name.as_str()?.to_owned();
                Some(Self { name, kind })
            };
            Some(names.filter_map(target).collect::<Vec<_>>())
        };
        let mut targets = named("locks", Kind::Lock)?;
        for (name, permits) in settings["semaphores"].as_object()? {
            targets.push(Self {
                name: name.clone(),
                kind: Kind::Semaphore(permits.as_u64()?.try_into().ok()?),
            });
        }
        targets.extend(named("shared", Kind::Shared)?);
        targets.extend(named("guarded", Kind::Guarded)?);
        Some(targets)
    }
}

/// The name of a slot in tables and in the order of commits.
pub fn slot_name(semaphore: &str, slot: u16) -> String {
    format!("{semaphore}/{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_back_from_the_settings() {
        let mut targets = Target::locks(2);
        targets.extend([Target::semaphore(2), Target::shared(), Target::guarded()]);
        let settings = Value::Object(Target::to_json(&targets));
        assert_eq!(Target::parse(&settings), Some(targets));
    }

    #[test]
    fn only_readers_do_not_conflict() {
        assert!(!Mode::Shared.conflicts(Mode::Shared));
        assert!(Mode::Shared.conflicts(Mode::Exclusive));
        assert!(Mode::Exclusive.conflicts(Mode::Shared));
        assert!(Mode::Permit(2).conflicts(Mode::Permit(2)), "of one slot");
    }
}
