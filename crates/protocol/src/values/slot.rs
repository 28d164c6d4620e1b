//! The row of a grant: the lock's own, or that of one permit of a semaphore.

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

    /// The first and the last value of the column `slot` that the row may have.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Permit(slot) => (slot.into(), slot.into()),
            Self::Lock | Self::AnyPermit => (0, u16::MAX.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
