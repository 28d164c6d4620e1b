//! What is said when the triggers of a guard cannot be created or dropped.

use super::guarded_table_body::quoted;
use crate::error::Cause;
use crate::store::api::StoreError;
use crate::store::mysql::error::is_code;

/// A failure while triggers were created or dropped, with what it left. If the server did not answer,
/// it may have carried the statement out.
pub(super) fn unless_whole(failure: StoreError, is_whole: bool, table: &str) -> StoreError {
    match (is_whole, &failure) {
        (false, _) => incomplete(failure, "is incomplete", table),
        (true, StoreError::Unavailable(_)) => incomplete(failure, "may be incomplete", table),
        (true, _) => failure,
    }
}

/// A failure after which a table has, or may have, some triggers of its guard and not all.
pub(crate) fn incomplete(mut failure: StoreError, state: &str, table: &str) -> StoreError {
    let (StoreError::Contention(source)
    | StoreError::Unavailable(source)
    | StoreError::Rejected { source, .. }) = &mut failure;
    let what = format!(
        "the guard of {table} {state}: guard it again, which creates what is missing, or unguard it"
    );
    *source = Cause::of(source, format!("{source}; {what}")).into();
    failure
}

/// A refusal, with what to do about it.
pub(super) fn explained(mut failure: StoreError, schema: &str, table: &str) -> StoreError {
    let hint = if is_code(&failure, &[1142, 1143, 1227]) {
        format!(
            "this user needs the right TRIGGER on the table: GRANT TRIGGER ON {}.{} TO …",
            quoted(schema),
            quoted(table)
        )
    } else if is_code(&failure, &[1419]) {
        "the binary log of the server is on: create the trigger as a user with the right SUPER, or \
         have an administrator SET GLOBAL log_bin_trust_function_creators = 1"
            .to_owned()
    } else {
        return failure;
    };
    if let StoreError::Rejected { hint: known, .. } = &mut failure {
        *known = Some(hint);
    }
    failure
}
