//! The locks of a program that did not say which: set once at its start, or found in its environment.

use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::locks::Locks;

/// Where a deployment names its database; `dblock` reads the same.
const URL_VARIABLE: &str = "DATABASE_LOCKS_URL";

static DEFAULT: Mutex<Option<Locks>> = Mutex::new(None);
/// Held while connecting, so that first users who come together share one connection.
static CONNECTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Locks {
    /// Make these the locks that [`Locks::get_default`] answers with, and so those of every
    /// `#[locked]` function that names no others.
    ///
    /// Set again, they hold for what is acquired from then on.
    pub fn set_default(locks: Self) {
        *DEFAULT.lock().unwrap_or_else(PoisonError::into_inner) = Some(locks);
    }

    /// The locks that were set by [`Locks::set_default`], or else those of the database that the
    /// environment variable `DATABASE_LOCKS_URL` names.
    ///
    /// The variable is read, and its database connected to, when they are first asked for; the
    /// connection is kept for the life of the process. A first attempt that failed is not
    /// remembered.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where neither is there; otherwise as [`Locks::connect`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the next who asks begins anew.
    pub async fn get_default() -> Result<Self, Error> {
        if let Some(known) = known() {
            return Ok(known);
        }
        let _alone = CONNECTING.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let connected = Self::connect(url()?).await?;
        let mut default = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
        // Where others were set meanwhile, those are what the program wants.
        Ok(default.get_or_insert(connected).clone())
    }
}

fn known() -> Option<Locks> {
    let default = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
    default.clone()
}

fn url() -> Result<String, Error> {
    let given = std::env::var_os(URL_VARIABLE).filter(|url| !url.is_empty());
    let Some(given) = given else {
        return Err(Error::config(
            "database",
            "not given",
            "set with `Locks::set_default`, or its URL be in the environment as DATABASE_LOCKS_URL",
        ));
    };
    given.into_string().map_err(|_| {
        let allowed = "a URL: what is not UTF-8 is to be percent-encoded";
        Error::config(URL_VARIABLE, "not UTF-8", allowed)
    })
}
