//! The row of a grant: the lock's own, or that of one permit of a semaphore.

use std::fmt;

use super::name::LockName;

/// The largest number of permits of a semaphore.
pub const MAX_PERMITS: u32 = 65_536;

/// The row of a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The lock's own row, in the table of locks.
    #[default]
    Lock,
    /// The row of this permit of a semaphore, in the table of permits.
    Permit(u16),
    /// The row of a permit, where the reply that named it was lost. The grant id finds it.
    AnyPermit,
}

impl Slot {
    /// The permit of a row of the table of permits; `None` for a row that is no permit.
    pub fn from_db(slot: i32) -> Option<Self> {
        u16::try_from(slot).ok().map(Self::Permit)
    }

    /// Whether the row is in the table of permits.
    pub fn is_permit(self) -> bool {
        self != Self::Lock
    }

    /// The number of the permit; `None` for a lock.
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Permit(slot) => Some(slot),
            Self::Lock | Self::AnyPermit => None,
        }
    }

    /// What this is, for messages: ``lock `api` ``, ``permit 2 of `api` ``, ``a permit of `api` ``.
    pub fn named(self, name: &LockName) -> impl fmt::Display {
        Named(self, name)
    }

    /// `lock` or `permit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Permit(_) | Self::AnyPermit => "permit",
        }
    }

    /// The first and the last value of the column `slot` that the row may have.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Permit(slot) => (slot.into(), slot.into()),
            Self::Lock | Self::AnyPermit => (0, u16::MAX.into()),
        }
    }
}

struct Named<'a>(Slot, &'a LockName);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(slot, name) = self;
        match slot {
            Slot::Lock => write!(f, "lock `{name}`"),
            Slot::Permit(number) => write!(f, "permit {number} of `{name}`"),
            Slot::AnyPermit => write!(f, "a permit of `{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_tell_a_permit_from_a_lock() {
        let name = LockName::new("api").unwrap();
        for (slot, text) in [
            (Slot::Lock, "lock `api`"),
            (Slot::Permit(2), "permit 2 of `api`"),
            (Slot::AnyPermit, "a permit of `api`"),
        ] {
            assert_eq!(slot.named(&name).to_string(), text);
        }
    }

    #[test]
    fn every_permit_has_a_slot_of_its_own_and_other_rows_have_none() {
        let slots = (0..=65_535).map(|slot| Slot::from_db(slot).unwrap());
        assert_eq!(slots.count(), MAX_PERMITS as usize);
        for other in [-1, -2, i32::MIN, 65_536] {
            assert_eq!(Slot::from_db(other), None);
        }
    }

    #[test]
    fn only_a_known_permit_has_a_number_and_a_single_row() {
        assert_eq!(Slot::Permit(7).number(), Some(7));
        assert_eq!(Slot::Permit(7).range(), (7, 7));
        for (slot, is_permit) in [(Slot::Lock, false), (Slot::AnyPermit, true)] {
            assert_eq!((slot.number(), slot.is_permit()), (None, is_permit));
            assert_eq!(slot.range(), (0, 65_535));
        }
    }
}
