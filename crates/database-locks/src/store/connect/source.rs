//! What a connection is made with: asked for at each connect, so that a password may change.

use std::fmt;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::io;
use std::sync::Arc;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::sync::{Mutex, PoisonError};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::time::Duration;

#[cfg(any(feature = "mysql", feature = "postgres"))]
use tokio::sync::watch;

#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::url::Server;
use super::url::{Surroundings, Target, Unresolved, of_process, resolve};
use crate::error::{BoxError, Error};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use protocol::Human;

/// A function of the program's that returns a secret. It may block.
pub(crate) type SecretSource = Arc<dyn Fn() -> Result<String, BoxError> + Send + Sync>;

/// What a program says of its database.
#[derive(Clone)]
pub(crate) struct Given {
    /// May hold a password.
    pub(crate) url: String,
    /// Asked for the URL in the place of that one.
    pub(crate) ask_url: Option<SecretSource>,
    /// Asked for the password where the URL has none.
    pub(crate) ask_password: Option<SecretSource>,
    /// Whether what the URL leaves out is looked up in the environment and the home folder.
    pub(crate) environment: bool,
    /// Whether a file that is not there is made; SQLite.
    pub(crate) create: bool,
}

/// Without the URL.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("environment", &self.environment)
            .field("create", &self.create)
            .finish_non_exhaustive()
    }
}

impl Given {
    pub(crate) fn url(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ask_url: None,
            ask_password: None,
            environment: true,
            create: true,
        }
    }

    /// Where the database is. No function of the program's is called.
    pub(crate) fn target(&self) -> Result<Target, Error> {
        match resolve(&self.url, &self.surroundings(), None) {
            Ok(target) => Ok(target),
            Err(Unresolved::Config(error)) => Err(error),
            Err(Unresolved::Password(_)) => unreachable!("it is not asked for"),
        }
    }

    fn surroundings(&self) -> Surroundings<'static> {
        Surroundings::new(&of_process, self.environment)
    }

    /// The same with all that it takes to log in.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    fn ask(&self) -> Result<Target, Missing> {
        let fixed = || Ok(self.url.clone());
        let asked = self.ask_url.as_ref().map_or_else(fixed, |ask| ask());
        let url = asked.map_err(|why| Missing::of("the URL", &why))?;
        let password = self.ask_password.as_deref();
        let password = password.map(|ask| ask as &dyn Fn() -> Result<String, BoxError>);
        resolve(&url, &self.surroundings(), password).map_err(|why| match why {
            Unresolved::Config(error) => Missing::Unusable(error.chain()),
            Unresolved::Password(why) => Missing::of("the password", &why),
        })
    }
}

/// Why there is nothing to log in with.
#[cfg(any(feature = "mysql", feature = "postgres"))]
#[derive(Clone, Debug)]
pub(crate) enum Missing {
    /// The source has failed: it may do better later.
    Later(String),
    /// What it says cannot be used.
    Unusable(String),
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl Missing {
    fn of(what: &str, why: &BoxError) -> Self {
        let of_no_use = why.downcast_ref().map(io::Error::kind);
        match Self::later(what, why) {
            Self::Later(message) if of_no_use == Some(io::ErrorKind::InvalidInput) => {
                Self::Unusable(message)
            }
            missing => missing,
        }
    }

    fn later(what: &str, why: &BoxError) -> Self {
        let (mut message, mut next) = (why.to_string(), why.source());
        while let Some(why) = next {
            let more = why.to_string();
            if !message.contains(&more) {
                message = format!("{message}: {more}");
            }
            next = why.source();
        }
        Self::Later(format!("{what} could not be had: {message}"))
    }
}

/// How long the program's functions and the files may take.
#[cfg(any(feature = "mysql", feature = "postgres"))]
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(any(feature = "mysql", feature = "postgres"))]
type Answer = Result<Arc<Target>, Missing>;

/// Where all connections of a store learn what to log in with.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) struct Source {
    given: Given,
    under_way: Mutex<Option<watch::Receiver<Option<Answer>>>>,
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl Source {
    pub(crate) fn new(given: Given) -> Self {
        Self {
            given,
            under_way: Mutex::default(),
        }
    }

    /// Whether the next answer may be another one: so a login that was refused may be let in later.
    pub(crate) fn may_change(&self) -> bool {
        self.given.ask_url.is_some() || self.given.ask_password.is_some()
    }

    /// What a connect waits for at present, where that is a function of the program's.
    pub(crate) fn waits_for(&self) -> Option<&'static str> {
        let under_way = self.under_way.lock();
        let under_way = under_way.unwrap_or_else(PoisonError::into_inner);
        let waits = under_way
            .as_ref()
            .is_some_and(|answer| answer.borrow().is_none() && answer.has_changed().is_ok());
        match (&self.given.ask_url, &self.given.ask_password) {
            (_, Some(_)) if waits => Some("the function for the password has not returned yet"),
            (Some(_), None) if waits => Some("the function for the URL has not returned yet"),
            _ => None,
        }
    }

    /// Ask for the server and for what to log in with.
    pub(crate) async fn ask(&self) -> Result<Server, Missing> {
        let answer = match self.given.environment || self.may_change() {
            true => self.ask_aside().await,
            false => self.given.ask().map(Arc::new),
        };
        let other = "the URL is now that of another kind of database";
        match &*answer? {
            #[cfg(feature = "postgres")]
            Target::Postgres(server) => Ok(server.clone()),
            #[cfg(feature = "mysql")]
            Target::Mysql(server) => Ok(server.clone()),
            _ => Err(Missing::Unusable(other.into())),
        }
    }

    /// Ask on a thread of its own, which may hang. At most one thread asks: other connects
    /// meanwhile wait for the same answer.
    async fn ask_aside(&self) -> Answer {
        let mut answer = {
            let mut under_way = self
                .under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match &*under_way {
                Some(answer) if answer.borrow().is_none() && answer.has_changed().is_ok() => {
                    answer.clone()
                }
                _ => {
                    let (done, answer) = watch::channel(None);
                    let given = self.given.clone();
                    let thread = std::thread::Builder::new().name("database-locks-login".into());
                    let started = thread.spawn(move || {
                        done.send_replace(Some(given.ask().map(Arc::new)));
                    });
                    if let Err(error) = started {
                        return Err(Missing::later("the password", &error.into()));
                    }
                    *under_way = Some(answer.clone());
                    answer
                }
            }
        };
        let done = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        match done {
            Ok(Ok(message)) => message.clone().unwrap_or_else(panicked),
            Ok(Err(_)) => panicked(),
            Err(_) => {
                let message = format!("no answer within {}", Human(PATIENCE));
                Err(Missing::later("the password", &message.into()))
            }
        }
    }
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
fn panicked() -> Answer {
    Err(Missing::later(
        "the password",
        &"the function for it panicked".into(),
    ))
}
