//! Several servers, of which one can be written to: in which order they are tried, for how long
//! each, and what is said when none will do.

use std::time::Duration;

use tokio::time::timeout;

use super::url::Address;
use crate::runtime::clock;
use protocol::Human;

/// The least time that a server gets, however many there are: a login with TLS over a slow line is
/// some ten trips there and back.
const LEAST: Duration = Duration::from_secs(1);

/// Why one server will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure<H> {
    pub(crate) verdict: Verdict,
    /// With its address.
    pub(crate) message: String,
    pub(crate) hint: Option<H>,
}

impl<H: std::fmt::Display> Failure<H> {
    /// What is said of it, and what to do about it.
    pub(crate) fn with_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{} ({hint})", self.message),
            None => self.message.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Perhaps later.
    Unavailable,
    /// It answers, and cannot be written to: another one of the list may be the primary.
    ReadOnly,
    /// A wrong password, an unknown CA: that does not pass by itself.
    Refused,
}

/// Connect to the first one that will do, and say which it was.
///
/// It begins with the one that served last (`first`), and then keeps to the list. A connection that
/// broke says nothing against its server; and where a failover is not quite over, an old primary
/// further up the list may still take writes that nobody will ever see.
pub(crate) async fn first_of<T, H: Clone, F>(
    addresses: &[Address],
    first: usize,
    whole: Duration,
    dial: impl Fn(usize, Duration) -> F,
) -> Result<(usize, T), Failure<H>>
where
    F: Future<Output = Result<T, Failure<H>>>,
{
    let began = clock::now();
    let order = std::iter::once(first).chain((0..addresses.len()).filter(|at| *at != first));
    let mut failures = Vec::new();
    for at in order {
        let rest = u32::try_from(addresses.len() - failures.len()).unwrap_or(u32::MAX);
        // One that accepts and never answers must not use up the time of those behind it.
        let left = whole.saturating_sub(clock::now() - began);
        let share = rounded(left / rest).max(LEAST.min(whole));
        match timeout(share, dial(at, share)).await {
            Ok(Ok(connection)) => return Ok((at, connection)),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => failures.push(Failure {
                verdict: Verdict::Unavailable,
                message: format!("{} did not answer within {}", addresses[at], Human(share)),
                hint: None,
            }),
        }
    }
    Err(all(failures))
}

/// So that people are told of 2 s, and not of 1.9998 s.
fn rounded(time: Duration) -> Duration {
    Duration::from_secs_f64((time.as_secs_f64() * 100.0).round() / 100.0)
}

/// All hosts and why not, as one failure.
///
/// It is final where one of them is: a waiter that waits on a wrong password, since another host is
/// down, would wait for ever. Standbys alone are not: one of them may be about to become the
/// primary.
fn all<H: Clone>(failures: Vec<Failure<H>>) -> Failure<H> {
    let is = |verdict| move |failure: &&Failure<H>| failure.verdict == verdict;
    let weightiest = failures.iter().find(is(Verdict::Refused));
    let weightiest = weightiest.or(failures.iter().find(is(Verdict::Unavailable)));
    let weightiest = weightiest.or(failures.first());
    let message: Vec<_> = failures
        .iter()
        .map(|failure| failure.message.as_str())
        .collect();
    Failure {
        verdict: weightiest.map_or(Verdict::Unavailable, |failure| failure.verdict),
        message: message.join("; "),
        hint: weightiest.and_then(|failure| failure.hint.clone()),
    }
}

/// All of them, for messages.
pub(crate) fn list(addresses: &[Address]) -> String {
    let shown: Vec<_> = addresses.iter().map(Address::to_string).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn failure(verdict: Verdict, message: &str) -> Failure<&'static str> {
        let hint = (verdict != Verdict::Unavailable).then_some("a hint");
        Failure {
            verdict,
            message: message.into(),
            hint,
        }
    }

    fn addresses(count: u16) -> Vec<Address> {
        (0..count).map(|at| Address::Tcp("h".into(), at)).collect()
    }

    #[tokio::test]
    async fn the_one_that_served_last_comes_first() {
        let tried = Mutex::new(Vec::new());
        let hosts = addresses(4);
        let found = first_of(&hosts, 2, Duration::from_secs(4), |at, _| {
            tried.lock().unwrap().push(at);
            async move {
                match at {
                    1 => Ok("connected"),
                    _ => Err(failure(Verdict::Unavailable, "down")),
                }
            }
        });
        assert_eq!(found.await.unwrap(), (1, "connected"));
        assert_eq!(*tried.lock().unwrap(), [2, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_has_its_share_of_the_time_only() {
        let hosts = addresses(2);
        let found = first_of(&hosts, 0, Duration::from_secs(4), |at, _| async move {
            if at == 0 {
                std::future::pending::<()>().await;
            }
            Err::<(), _>(failure(Verdict::ReadOnly, "h:1 is a standby"))
        });
        let message = found.await.unwrap_err();
        assert_eq!(
            message.message,
            "h:0 did not answer within 2s; h:1 is a standby"
        );
        assert_eq!(message.verdict, Verdict::Unavailable, "a failover, perhaps");
    }

    #[test]
    fn what_does_not_pass_by_itself_decides() {
        use Verdict::{ReadOnly, Refused, Unavailable};
        for (verdicts, expected) in [
            (vec![Unavailable, Refused], Refused),
            (vec![ReadOnly, Refused, Unavailable], Refused),
            (vec![ReadOnly, Unavailable], Unavailable),
            (vec![ReadOnly, ReadOnly], ReadOnly),
        ] {
            let failures = verdicts.iter().map(|verdict| failure(*verdict, "x"));
            let all = all(failures.collect());
            assert_eq!(all.verdict, expected, "{verdicts:?}");
            assert_eq!(all.hint.is_some(), expected != Unavailable);
        }
    }
}
