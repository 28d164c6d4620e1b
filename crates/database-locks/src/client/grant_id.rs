//! Random grant ids, drawn for many at once.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use protocol::GrantId;

use crate::error::Error;
use crate::runtime::fork::PerProcess;

/// How many of them one system call draws.
const DRAWN_AT_ONCE: usize = 64;

/// A new grant id. Each is handed out once; a forked child draws its own.
///
/// # Errors
///
/// [`Error::Unavailable`] if the operating system has no randomness to give.
pub fn random_grant_id() -> Result<GrantId, Error> {
    static DRAWN: PerProcess<Mutex<Vec<[u8; 16]>>> = PerProcess::new();
    let Ok(drawn) = DRAWN.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
    let mut drawn = drawn.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(bytes) = drawn.pop() {
            return Ok(GrantId::of(bytes));
        }
        let mut fresh = vec![[0; 16]; DRAWN_AT_ONCE];
        getrandom::fill(fresh.as_flattened_mut()).map_err(|source| Error::Unavailable {
            op: "draw a random grant id from the operating system".into(),
            source: Box::new(source),
        })?;
        *drawn = fresh;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_grant_id_is_handed_out_twice() {
        let draw = || (0..1_000).map(|_| random_grant_id().unwrap());
        let mut all: Vec<GrantId> = draw().collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..9)
                .map(|_| scope.spawn(|| draw().collect::<Vec<_>>()))
                .collect();
            for thread in threads {
                all.extend(thread.join().unwrap());
            }
        });
        let distinct: HashSet<&str> = all.iter().map(GrantId::as_str).collect();
        assert_eq!(distinct.len(), 10_000);
    }
}
