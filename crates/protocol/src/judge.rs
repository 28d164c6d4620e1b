//! Why a grant that was not renewed is lost, by the row that a plain read shows.

use crate::lost::{Gone, LostReason};
use crate::messages::{Grant, Renewal, ResumeCommand};
use crate::row::LockRow;

/// The outcome of a renewal that changed no row.
///
/// If the row still holds the grant, another transaction has it locked: [`Renewal::Busy`].
/// Otherwise the lock is lost, for the reason that the row shows.
pub fn judge(grant: &Grant, row: Option<&LockRow>) -> Renewal {
    let Some(row) = row else {
        return Renewal::Lost(LostReason::RowGone.into());
    };
    let token = grant.token.get();
    let same_holder = row.holder.as_deref() == Some(&*grant.holder);
    let same_grant = row.grant.as_deref() == Some(grant.id.as_str());
    // A client that resumes a grant, or takes it over for the same holder, leaves the old id in its
    // metadata. 128 random bits are there for no other reason.
    let is_named = row.names(grant.id.as_str());
    let reason = if row.token > token {
        // A release by force raises the token and leaves the holder. So does a take-over after its
        // own release, but the metadata names the grant that it took over.
        if row.grant.is_none() && same_holder && !is_named {
            LostReason::Forced
        } else {
            LostReason::Preempted
        }
    } else if row.token < token {
        LostReason::Failover
    } else if row.is_legacy {
        LostReason::Preempted
    } else if row.grant.is_none() {
        // A release with the ticket leaves the holder, or names the grant if it was resumed before.
        if same_holder || is_named {
            LostReason::Released
        } else {
            LostReason::Failover
        }
    } else if !same_grant {
        // If it was not resumed, a server that did not know the grant gave its token a second time.
        if is_named {
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
    // A row that was changed by hand may still show the lost grant: that is not the present holder.
    let is_own = same_holder && (row.token == token || same_grant);
    let now = row.held_by().filter(|_| !is_own);
    Renewal::Lost(Gone { reason, now })
}

/// The same, by the row of another server than the one that confirmed the grant last.
///
/// While the holder trusts its lease, no server that knows the grant can have ended it or given it
/// to another client. If this server says so, it lacks the grant or its renewals:
/// [`LostReason::Failover`], unless the row shows that a client knew the grant.
pub fn judge_elsewhere(grant: &Grant, row: Option<&LockRow>) -> Renewal {
    let id = grant.id.as_str();
    let is_known = row.is_some_and(|row| row.grant.as_deref() == Some(id) || row.names(id));
    let mut verdict = judge(grant, row);
    if let Renewal::Lost(gone) = &mut verdict {
        gone.reason = match gone.reason {
            LostReason::RowGone | LostReason::Expired => LostReason::Failover,
            LostReason::Preempted if !is_known => LostReason::Failover,
            reason => reason,
        };
    }
    verdict
}

/// The same for a ticket that could not be resumed. A ticket does not know the name of its holder.
pub fn judge_ticket(command: &ResumeCommand, row: Option<&LockRow>) -> Renewal {
    if let Some(row) = row.filter(|row| row.token > command.token.get()) {
        return Renewal::Lost(Gone {
            reason: LostReason::Preempted,
            now: row.held_by(),
        });
    }
    let holder = row.and_then(|row| row.holder.as_deref());
    let grant = Grant {
        name: command.to.name.clone(),
        token: command.token,
        id: command.from,
        holder: holder.unwrap_or_default().into(),
        confirmed_by: None,
    };
    judge(&grant, row)
}

#[cfg(test)]
mod tests;
