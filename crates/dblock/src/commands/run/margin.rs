//! How long before the end of its lease CMD is stopped.

use std::time::Duration;

use database_locks::Ttl;

use crate::exit::Failure;
use crate::time::human;

/// The grace, and a reserve for noticing the loss and sending the signals.
pub(crate) fn margin(ttl: Ttl, grace: Duration) -> Result<Duration, Failure> {
    let Ttl::Finite(ttl) = ttl else {
        return Ok(grace);
    };
    if !grace.is_zero() && ttl <= grace.saturating_mul(2) {
        let fits = match ttl / 4 {
            short if short < Duration::from_secs(1) => format!("{}ms", short.as_millis()),
            short => format!("{}s", short.as_secs()),
        };
        return Err(Failure::usage(format!(
            "--ttl is {}, must be more than twice the --grace of {}, since CMD has to be stopped \
             before another client can have the lock: give a longer --ttl or a shorter --grace, say \
             --grace {fits}",
            human(ttl),
            human(grace)
        )));
    }
    // Capped, or a lease of an hour would be given up six minutes before its end.
    let reserve = (ttl / 2).saturating_sub(grace) / 5;
    Ok(grace + reserve.min((ttl / 100).max(Duration::from_secs(3))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_grace_ends_before_the_lease_does() {
        for (ttl, grace) in [(30, 5), (11, 5), (3600, 600), (1, 0)] {
            let margin = margin(secs(ttl).into(), secs(grace)).unwrap();
            assert!(margin > secs(grace), "{ttl} {grace}: {margin:?}");
            assert!(margin < secs(ttl) / 2, "{ttl} {grace}: {margin:?}");
        }
        assert_eq!(margin(secs(30).into(), secs(5)).unwrap(), secs(7));
        assert_eq!(margin(secs(3600).into(), secs(5)).unwrap(), secs(41));
        assert_eq!(margin(Ttl::Infinite, secs(5)).unwrap(), secs(5));
    }

    #[test]
    fn a_ttl_that_leaves_no_room_for_the_grace_is_refused_with_both_numbers() {
        let failure = margin(secs(10).into(), secs(5)).unwrap_err();
        assert_eq!(failure.code, 2);
        for part in ["--ttl is 10s", "--grace of 5s"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
        assert!(
            failure.message.ends_with("say --grace 2s"),
            "{}",
            failure.message
        );
        assert!(margin(secs(30).into(), Duration::MAX).is_err());
        assert!(margin(Ttl::Infinite, Duration::MAX).is_ok());
    }
}
