//! The row of a grant: the lock's own, that of one permit of a semaphore, or that of a shared grant.

use crate::values::grant::GrantId;

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
    /// The row of a shared grant, in the table of permits: −2 or less.
    Shared(i32),
}

impl Slot {
    /// The row of a new shared grant. It is derived from the random grant id, so that a repeated
    /// request finds the row of the first one.
    pub fn of_shared(grant: GrantId) -> Self {
        let random = u32::from_str_radix(&grant.as_str()[..8], 16).unwrap_or_default();
        Self::Shared(-2 - (random % 0x7fff_fffe).cast_signed())
    }

    /// The row of the table of permits with this value of the column `slot`; `None` for that of an
    /// operator's limit, −1, which has no grant.
    pub fn from_db(slot: i32) -> Option<Self> {
        match u16::try_from(slot) {
            Ok(permit) => Some(Self::Permit(permit)),
            Err(_) => (slot <= -2).then_some(Self::Shared(slot)),
        }
    }

    /// Whether the row is in the table of permits.
    pub fn is_permit(self) -> bool {
        self != Self::Lock
    }

    /// Whether it is the row of a shared grant.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// The number of the permit; `None` for what is no permit.
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Permit(slot) => Some(slot),
            Self::Lock | Self::AnyPermit | Self::Shared(_) => None,
        }
    }

    /// The value of the column `slot`; `None` for a lock, whose table has none.
    pub fn column(self) -> Option<i32> {
        match self {
            Self::Permit(slot) => Some(slot.into()),
            Self::Shared(slot) => Some(slot),
            Self::Lock | Self::AnyPermit => None,
        }
    }

    /// What this is, for messages: ``lock `api` ``, ``permit 2 of `api` ``, ``a permit of `api` ``.
    pub fn named(self, name: &LockName) -> impl fmt::Display {
        Named(self, name)
    }

    /// `lock`, `shared lock` or `permit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Permit(_) | Self::AnyPermit => "permit",
            Self::Shared(_) => "shared lock",
        }
    }

    /// The first and the last value of the column `slot` that the row may have.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Permit(slot) => (slot.into(), slot.into()),
            Self::Shared(slot) => (slot, slot),
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
            Slot::Shared(_) => write!(f, "shared lock `{name}`"),
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
            (Slot::Shared(-2), "shared lock `api`"),
        ] {
            assert_eq!(slot.named(&name).to_string(), text);
        }
    }

    #[test]
    fn every_permit_has_a_slot_of_its_own_and_other_rows_have_none() {
        let slots = (0..=65_535).map(|slot| Slot::from_db(slot).unwrap());
        assert_eq!(slots.count(), MAX_PERMITS as usize);
        for other in [-1, 65_536, i32::MAX] {
            assert_eq!(Slot::from_db(other), None);
        }
    }

    #[test]
    fn a_shared_grant_has_a_row_that_is_no_permit_and_that_its_id_finds_again() {
        for (first, slot) in [
            (0, -2),
            (1, -2 - (1 << 24)),
            (0xff, -2 - (0xff00_0000_u32 % 0x7fff_fffe).cast_signed()),
        ] {
            let mut id = [0; 16];
            id[0] = first;
            let shared = Slot::of_shared(GrantId::of(id));
            assert_eq!(shared, Slot::Shared(slot));
            assert_eq!(Slot::from_db(slot), Some(shared));
            assert_eq!(
                (shared.column(), shared.range()),
                (Some(slot), (slot, slot))
            );
            assert!(shared.is_shared() && shared.is_permit() && shared.number().is_none());
        }
        let last = Slot::of_shared(GrantId::of([
            0x7f, 0xff, 0xff, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]));
        assert_eq!(last, Slot::Shared(-0x7fff_ffff));
    }

    #[test]
    fn messages_call_a_row_by_its_kind() {
        let shared = Slot::of_shared(GrantId::of([7; 16]));
        let kinds = [Slot::Lock, Slot::Permit(7), Slot::AnyPermit, shared].map(Slot::as_str);
        assert_eq!(kinds, ["lock", "permit", "permit", "shared lock"]);
    }

    #[test]
    fn only_a_known_permit_has_a_number_and_a_single_row() {
        assert_eq!(Slot::Permit(7).number(), Some(7));
        assert_eq!(
            (Slot::Permit(7).range(), Slot::Permit(7).column()),
            ((7, 7), Some(7))
        );
        assert!(!Slot::Permit(7).is_shared());
        for (slot, is_permit) in [(Slot::Lock, false), (Slot::AnyPermit, true)] {
            assert_eq!((slot.number(), slot.is_permit()), (None, is_permit));
            assert!(slot.column().is_none() && !slot.is_shared());
            assert_eq!(slot.range(), (0, 65_535));
        }
    }
}
