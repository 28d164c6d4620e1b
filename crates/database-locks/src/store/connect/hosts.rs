//! Several hosts, of which one is writable: the order of attempts, the time for each, and the error
//! if all fail.

use std::time::Duration;

use tokio::time::timeout;

use super::url::Address;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::Human;

/// The least time for a host, however many there are: a login with TLS takes some ten round trips.
const LEAST: Duration = Duration::from_secs(1);

/// Why an attempt to connect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectFailure {
    pub(crate) kind: FailureKind,
    /// Contains the address.
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl ConnectFailure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// The message alone. It includes the hint if the server is read-only, since then the error
    /// has none.
    pub(crate) fn into_message(self) -> String {
        match (self.kind, self.hint) {
            (FailureKind::ReadOnly, Some(hint)) => format!("{} ({hint})", self.message),
            _ => self.message,
        }
    }
}

impl From<StoreError> for ConnectFailure {
    fn from(error: StoreError) -> Self {
        let answers = error.is_answer();
        let (kind, source, hint) = match error {
            StoreError::Unavailable(source) if answers => (FailureKind::ReadOnly, source, None),
            StoreError::Contention(source) | StoreError::Unavailable(source) => {
                (FailureKind::Unavailable, source, None)
            }
            StoreError::Rejected { hint, source } => (FailureKind::Refused, source, hint),
        };
        Self {
            kind,
            message: source.to_string(),
            hint,
        }
    }
}

impl From<ConnectFailure> for StoreError {
    fn from(failure: ConnectFailure) -> Self {
        match failure.kind {
            FailureKind::Unavailable => Self::Unavailable(failure.message.into()),
            // As the server itself would answer: a failover may be under way, which a waiter waits
            // for.
            FailureKind::ReadOnly => Self::cannot_serve(failure.into_message()),
            FailureKind::Refused => Self::rejected(failure.message, failure.hint.as_deref()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// It may succeed later.
    Unavailable,
    /// The host is read-only. Another one of the list may be the primary.
    ReadOnly,
    /// A wrong password, an unknown CA: the failure does not pass by itself.
    Refused,
}

/// The order in which hosts are tried, as indexes.
///
/// The host that served last (`first`) comes first, then the others in order. A broken connection
/// says nothing about its host. And during a failover a former primary further up the list may
/// still accept writes, which are lost.
///
/// The host to be `avoided` comes last, and the others in order from the one after it. If several
/// hosts in a row leave requests unanswered, each of the others has its turn.
pub(crate) fn order(count: usize, first: usize, avoided: Option<usize>) -> Vec<usize> {
    let begin = avoided.map_or(0, |avoided| avoided + 1);
    let mut order: Vec<usize> = (begin..begin + count).map(|at| at % count).collect();
    if avoided != Some(first) {
        order.retain(|at| *at != first);
        order.insert(0, first);
    }
    order
}

/// Connect to the first usable host in this order. Answers its index.
pub(crate) async fn first_of<T, F>(
    addresses: &[Address],
    order: Vec<usize>,
    whole: Duration,
    dial: impl Fn(usize, Duration) -> F,
) -> Result<(usize, T), ConnectFailure>
where
    F: Future<Output = Result<T, ConnectFailure>>,
{
    let began = clock::now();
    let mut failures = Vec::new();
    for at in order {
        let rest = u32::try_from(addresses.len() - failures.len()).unwrap_or(u32::MAX);
        // A host that accepts and never answers must not use up the time of the others.
        let left = whole.saturating_sub(clock::now() - began);
        let share = rounded(left / rest).max(LEAST.min(whole));
        match timeout(share, dial(at, share)).await {
            Ok(Ok(connection)) => return Ok((at, connection)),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => {
                let message = format!("{} did not answer within {}", addresses[at], Human(share));
                failures.push(ConnectFailure::new(FailureKind::Unavailable, message, None));
            }
        }
    }
    Err(all(failures))
}

/// So that messages have 2 s, and not 1.9998 s.
fn rounded(time: Duration) -> Duration {
    Duration::from_secs_f64((time.as_secs_f64() * 100.0).round() / 100.0)
}

/// The failures of all hosts as one.
///
/// It is final if one of them is: otherwise a waiter would wait for ever on a wrong password if
/// another host is down. Read-only hosts alone are not final: one of them may be about to become
/// the primary.
fn all(failures: Vec<ConnectFailure>) -> ConnectFailure {
    let is = |kind| move |failure: &&ConnectFailure| failure.kind == kind;
    let weightiest = failures.iter().find(is(FailureKind::Refused));
    let weightiest = weightiest.or(failures.iter().find(is(FailureKind::Unavailable)));
    let weightiest = weightiest.or(failures.first());
    let message: Vec<_> = failures
        .iter()
        .map(|failure| failure.message.as_str())
        .collect();
    ConnectFailure {
        kind: weightiest.map_or(FailureKind::Unavailable, |failure| failure.kind),
        message: message.join("; "),
        hint: weightiest.and_then(|failure| failure.hint.clone()),
    }
}

/// All addresses, for messages.
pub(crate) fn list(addresses: &[Address]) -> String {
    let shown: Vec<_> = addresses.iter().map(Address::to_string).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn failure(kind: FailureKind, message: &str) -> ConnectFailure {
        let hint = (kind != FailureKind::Unavailable).then(|| "a hint".to_owned());
        ConnectFailure {
            kind,
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
        let order = order(4, 2, None);
        let found = first_of(&hosts, order, Duration::from_secs(4), |at, _| {
            tried.lock().unwrap().push(at);
            async move {
                match at {
                    1 => Ok("connected"),
                    _ => Err(failure(FailureKind::Unavailable, "down")),
                }
            }
        });
        assert_eq!(found.await.unwrap(), (1, "connected"));
        assert_eq!(*tried.lock().unwrap(), [2, 0, 1]);
    }

    #[test]
    fn one_to_be_avoided_comes_last_and_the_one_after_it_first() {
        assert_eq!(order(3, 1, None), [1, 0, 2]);
        assert_eq!(order(3, 0, Some(0)), [1, 2, 0]);
        assert_eq!(order(3, 1, Some(1)), [2, 0, 1]);
        assert_eq!(order(3, 2, Some(2)), [0, 1, 2]);
        assert_eq!(order(4, 2, Some(0)), [2, 1, 3, 0]);
        assert_eq!(order(1, 0, Some(0)), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_has_its_share_of_the_time_only() {
        let hosts = addresses(2);
        let order = order(2, 0, None);
        let found = first_of(&hosts, order, Duration::from_secs(4), |at, _| async move {
            if at == 0 {
                std::future::pending::<()>().await;
            }
            Err::<(), _>(failure(FailureKind::ReadOnly, "h:1 is a standby"))
        });
        let failure = found.await.unwrap_err();
        assert_eq!(
            failure.message,
            "h:0 did not answer within 2s; h:1 is a standby"
        );
        assert_eq!(
            failure.kind,
            FailureKind::Unavailable,
            "a failover, perhaps"
        );
    }

    #[test]
    fn what_does_not_pass_by_itself_decides() {
        use FailureKind::{ReadOnly, Refused, Unavailable};
        for (kinds, expected) in [
            (vec![Unavailable, Refused], Refused),
            (vec![ReadOnly, Refused, Unavailable], Refused),
            (vec![ReadOnly, Unavailable], Unavailable),
            (vec![ReadOnly, ReadOnly], ReadOnly),
        ] {
            let failures = kinds.iter().map(|kind| failure(*kind, "x"));
            let all = all(failures.collect());
            assert_eq!(all.kind, expected, "{kinds:?}");
            assert_eq!(all.hint.is_some(), expected != Unavailable);
        }
    }
}
