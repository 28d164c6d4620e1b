//! How far apart the grants of a lock are: the settings `at_least` and `once_per`.

use std::time::Duration;

use crate::values::invalid::InvalidSetting;
use crate::values::text::Human;
use crate::values::ttl::Ttl;

/// The part of a period by which a grant may begin early: a tenth of it …
const TOLERANCE_PART: u32 = 10;
/// … up to this.
const MAX_TOLERANCE: Duration = Duration::from_secs(60);

/// The period in which a lock is granted once.
///
/// A grant is refused if the latest one began less than the [window](OncePer::window) ago. The
/// window is a little shorter than the period, since the callers of one period do not start at
/// exactly the same time in each: with the whole period, a caller that starts 20 ms earlier than
/// the last time would be refused. A comparison of numbered periods (both in hour 17) would be
/// worse where it matters, for callers that start near the beginning of a period: a grant just
/// before it and one just after it are in two periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OncePer(Duration);

impl OncePer {
    /// The shortest period.
    pub const MIN: Duration = Duration::from_millis(100);
    /// The longest period: that of the longest ttl.
    pub const MAX: Duration = Ttl::MAX;

    /// The period.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for one below [`OncePer::MIN`] or above [`OncePer::MAX`].
    pub fn new(period: Duration) -> Result<Self, InvalidSetting> {
        if (Self::MIN..=Self::MAX).contains(&period) {
            return Ok(Self(period));
        }
        let allowed = "100ms to 10 years";
        Err(InvalidSetting::new(
            "once_per",
            Human(period).to_string(),
            allowed,
        ))
    }

    /// The whole period.
    pub fn period(self) -> Duration {
        self.0
    }

    /// How long after the beginning of a grant the next one is refused: the period, less a tenth of
    /// it or 60 s, whichever is less.
    pub fn window(self) -> Duration {
        self.0 - (self.0 / TOLERANCE_PART).min(MAX_TOLERANCE)
    }
}

/// The least time for which a lock stays unavailable from the beginning of a grant.
///
/// # Errors
///
/// [`InvalidSetting`] for more than ten years.
pub fn checked_at_least(length: Duration) -> Result<Duration, InvalidSetting> {
    if length <= Ttl::MAX {
        return Ok(length);
    }
    let allowed = "0 to 10 years";
    Err(InvalidSetting::new(
        "at_least",
        Human(length).to_string(),
        allowed,
    ))
}

#[cfg(test)]
mod tests;
