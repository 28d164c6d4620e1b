//! Why a grant that could not be renewed is lost, according to its row.

use crate::lost::{Gone, LostReason};
use crate::messages::{Grant, Renewal, ResumeCommand};
use crate::row::LockRow;

/// The outcome of a renewal that changed no row, according to a plain read of the row.
///
/// If the row still holds the grant, another transaction has it locked: [`Renewal::Busy`].
/// Otherwise the lock is lost, for the reason that the row shows.
pub fn failed_renewal_outcome(grant: &Grant, row: Option<&LockRow>) -> Renewal {
    let Some(row) = row else {
        return Renewal::Lost(LostReason::RowGone.into());
    };
    let token = grant.token.get();
    let same_holder = row.holder.as_deref() == Some(&*grant.holder);
    let same_grant = row.grant.as_deref() == Some(grant.id.as_str());
    // A client that resumes a grant, or takes it over for the same holder, writes the id of that
    // grant into its metadata.
    let is_in_metadata = row.metadata_contains(grant.id.as_str());
    let reason = if row.token > token {
        // A release by force increases the token and keeps the holder. So does a take-over that was
        // released since, but its metadata contains the grant that it took over.
        if row.grant.is_none() && same_holder && !is_in_metadata {
            LostReason::Forced
        } else {
            LostReason::Preempted
        }
    } else if row.token < token {
        LostReason::Failover
    } else if row.is_legacy {
        LostReason::Preempted
    } else if row.grant.is_none() {
        // A release by ticket keeps the holder. If the grant was resumed before, the metadata
        // contains it.
        if same_holder || is_in_metadata {
            LostReason::Released
        } else {
            LostReason::Failover
        }
    } else if !same_grant {
        // If the grant was not resumed, a server that lacks it granted its token again.
        if is_in_metadata {
            LostReason::Resumed
        } else {
            LostReason::Failover
        }
    } else if !same_holder {
        LostReason::Preempted
    } else if row.is_held() {
        return Renewal::Busy;
    } else {
        LostReason::Expired
    };
    // A row that was changed by hand may still contain the lost grant, which is no present holder.
    let is_own = same_holder && (row.token == token || same_grant);
    let now = row.held_by().filter(|_| !is_own);
    Renewal::Lost(Gone { reason, now })
}

/// Like [`failed_renewal_outcome`], for a row of another server than the one that confirmed the
/// grant last.
///
/// While the holder trusts its lease, no server that knows the grant can have ended it or given it
/// to another client. If this server shows that, it lacks the grant or its renewals:
/// [`LostReason::Failover`], unless the row shows that a client knew the grant.
pub fn failed_renewal_outcome_elsewhere(grant: &Grant, row: Option<&LockRow>) -> Renewal {
    let id = grant.id.as_str();
    let is_known =
        row.is_some_and(|row| row.grant.as_deref() == Some(id) || row.metadata_contains(id));
    let mut outcome = failed_renewal_outcome(grant, row);
    if let Renewal::Lost(gone) = &mut outcome {
        gone.reason = match gone.reason {
            LostReason::RowGone | LostReason::Expired => LostReason::Failover,
            LostReason::Preempted if !is_known => LostReason::Failover,
            reason => reason,
        };
    }
    outcome
}

/// Like [`failed_renewal_outcome`], for a ticket that could not be resumed. A ticket does not
/// contain the name of the holder.
pub fn failed_resume_outcome(command: &ResumeCommand, row: Option<&LockRow>) -> Renewal {
    if let Some(row) = row.filter(|row| row.token > command.token.get()) {
        return Renewal::Lost(Gone {
            reason: LostReason::Preempted,
            now: row.held_by(),
        });
    }
    let holder = row.and_then(|row| row.holder.as_deref());
    let grant = Grant {
        name: command.to.name.clone(),
        slot: command.slot,
        token: command.token,
        id: command.from,
        holder: holder.unwrap_or_default().into(),
        confirmed_by: None,
    };
    failed_renewal_outcome(&grant, row)
}

#[cfg(test)]
mod tests;
