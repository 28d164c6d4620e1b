//! The guards of tables.

use super::report::ReportBuilder;
use crate::doctor::{GUARD_BYPASSED, GUARD_INCOMPLETE};
use protocol::TableGuard;

impl ReportBuilder {
    /// Record the guarded tables, if there are any.
    pub(crate) fn guards(&mut self, guards: &[TableGuard]) {
        for guard in guards {
            let what = |gap: &String| {
                let (table, lock) = (&guard.table, &guard.lock);
                format!("the guard of {table} by the lock \"{lock}\": {gap}")
            };
            for gap in &guard.gaps {
                self.found(&GUARD_INCOMPLETE, what(gap));
            }
            for bypass in &guard.bypasses {
                self.found(&GUARD_BYPASSED, what(bypass));
            }
        }
        let intact: Vec<String> = guards
            .iter()
            .filter(|guard| guard.gaps.is_empty())
            .map(|guard| format!("{} by the lock \"{}\"", guard.table, guard.lock))
            .collect();
        if !intact.is_empty() {
            self.fine("guards", format!("intact: {}", intact.join(", ")));
        }
    }
}
