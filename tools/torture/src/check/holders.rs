//! Finds holders that were in at the same moment and must not be.

use crate::check::evidence::Evidence;
use crate::check::grants::Grant;
use crate::check::limits::Limits;
use crate::check::violation::{Kind, Violation};
use crate::target::Mode;

/// A grant, and the time in which its body ran without a notification of loss.
struct Body<'a> {
    from: u64,
    until: u64,
    grant: &'a Grant,
}

fn bodies<'a>(grants: &[&'a Grant]) -> Vec<Body<'a>> {
    let body = |grant: &&'a Grant| {
        let (from, until) = grant.body()?;
        Some(Body { from, until, grant })
    };
    let mut bodies: Vec<Body<'a>> = grants.iter().filter_map(body).collect();
    bodies.sort_by_key(|body| body.from);
    bodies
}

/// Goes through the bodies in the order in which they began, with those that were in by then.
fn walk<'a>(grants: &[&'a Grant], mut entered: impl FnMut(&Body<'a>, &[Body<'a>])) {
    let mut inside: Vec<Body<'a>> = Vec::new();
    for body in bodies(grants) {
        inside.retain(|other| other.until > body.from);
        entered(&body, &inside);
        inside.push(body);
    }
}

/// Adds a violation for each body that began beside another one of the same lock, or of the same
/// slot of a semaphore. Readers may be in together.
pub(super) fn two_holders(resource: &str, grants: &[&Grant], found: &mut Vec<Violation>) {
    walk(grants, |body, inside| {
        let conflicting = inside.iter().filter(|o| o.grant.conflicts(body.grant));
        let Some(other) = conflicting.max_by_key(|other| other.until) else {
            return;
        };
        let shared = [body, other].map(|body| body.grant.mode == Mode::Shared);
        found.push(Violation {
            kind: match shared {
                [false, false] => Kind::TwoHolders,
                _ => Kind::ReaderAndWriter,
            },
            lock: resource.to_owned(),
            at: body.from,
            text: format!(
                "{} (token {}) and {} (token {}) for {} ms",
                other.grant.process,
                other.grant.token,
                body.grant.process,
                body.grant.token,
                (other.until.min(body.until) - body.from) / 1000
            ),
        });
    });
}

/// Adds a violation for each body that began while as many permits were held as the semaphore has,
/// and for each permit whose slot is not below the limit.
///
/// The limit may have been greater when the holders asked: those of a greater limit may stay until
/// they have released. So the greatest one counts that was in force since then.
pub(super) fn permits(
    lock: &str,
    grants: &[&Grant],
    evidence: &Evidence,
    found: &mut Vec<Violation>,
) {
    let limits = Limits::of(lock, evidence);
    walk(grants, |body, inside| {
        let Mode::Permit(own) = body.grant.mode else {
            return;
        };
        let asked = |of: &Body<'_>| (of.grant.asked, limit_of(of.grant));
        let all = inside.iter().map(asked).chain([(body.grant.asked, own)]);
        let greatest = all.map(|(asked, own)| limits.greatest(own, asked, body.from));
        let greatest = greatest.max().unwrap_or_default();
        let held = inside.len() + 1;
        let grant = body.grant;
        let slot = grant
            .slot
            .filter(|slot| u32::from(*slot) >= limits.greatest(own, grant.asked, grant.granted));
        let text = match slot {
            Some(slot) => format!("{} has the slot {slot}", grant.process),
            None if held > greatest as usize => {
                let others: Vec<&str> = inside.iter().map(|o| o.grant.process.as_str()).collect();
                format!("{} beside {}", grant.process, others.join(", "))
            }
            None => return,
        };
        found.push(Violation {
            kind: Kind::TooMany,
            lock: lock.to_owned(),
            at: body.from,
            text: format!("{text}; held {held}, limit {greatest}"),
        });
    });
}

fn limit_of(grant: &Grant) -> u32 {
    match grant.mode {
        Mode::Permit(limit) => limit,
        _ => 1,
    }
}
