//! The server and the credentials of a connection. They are asked for at each connect, since a
//! password may change.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::options::ConnectOptions;
use super::url::{ResolveError, Server, Target, resolve};
use crate::error::BoxError;
use protocol::Human;

impl ConnectOptions {
    /// [`target`](Self::target) with the credentials. The functions of the program are called.
    fn ask(&self) -> Result<Target, ProviderError> {
        let fixed = || Ok(self.url.clone());
        let asked = self.ask_url.as_ref().map_or_else(fixed, |ask| ask());
        let url = asked.map_err(|why| ProviderError::new("the URL", &why))?;
        let password = self.ask_password.as_deref();
        let password = password.map(|ask| ask as &dyn Fn() -> Result<String, BoxError>);
        resolve(&url, &self.environment_of_process(), password).map_err(|why| match why {
            ResolveError::Config(error) => ProviderError::Unusable(error.chain()),
            ResolveError::Password(why) => ProviderError::new("the password", &why),
        })
    }
}

/// Why the server and its credentials are not known.
#[derive(Clone, Debug)]
pub(crate) enum ProviderError {
    /// The function of the program failed. It may succeed later.
    Later(String),
    /// Its answer cannot be used.
    Unusable(String),
}

impl ProviderError {
    /// The error of a function of the program, with its sources. `InvalidInput` means that its
    /// answer cannot be used.
    fn new(what: &str, error: &BoxError) -> Self {
        let (mut message, mut next) = (error.to_string(), error.source());
        while let Some(source) = next {
            let more = source.to_string();
            if !message.contains(&more) {
                message = format!("{message}: {more}");
            }
            next = source.source();
        }
        let message = format!("{what} could not be had: {message}");
        match error.downcast_ref().map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput) => Self::Unusable(message),
            _ => Self::Later(message),
        }
    }
}

/// The time limit of the program's functions and of reading files.
const TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Result<Arc<Target>, ProviderError>;

/// Provides all connections of a store with the server and the credentials, as they are now.
pub(crate) struct ServerProvider {
    options: ConnectOptions,
    under_way: Mutex<Option<watch::Receiver<Option<Answer>>>>,
}

impl ServerProvider {
    pub(crate) fn new(options: ConnectOptions) -> Self {
        Self {
            options,
            under_way: Mutex::default(),
        }
    }

    /// Whether the answer may change, so that a refused login may succeed later.
    pub(crate) fn may_change(&self) -> bool {
        self.options.ask_url.is_some() || self.options.ask_password.is_some()
    }

    /// The function of the program that a connect waits for now.
    pub(crate) fn waits_for(&self) -> Option<&'static str> {
        let under_way = self.under_way.lock();
        let under_way = under_way.unwrap_or_else(PoisonError::into_inner);
        let waits = under_way
            .as_ref()
            .is_some_and(|answer| answer.borrow().is_none() && answer.has_changed().is_ok());
        match (&self.options.ask_url, &self.options.ask_password) {
            (_, Some(_)) if waits => Some("the function for the password has not returned yet"),
            (Some(_), None) if waits => Some("the function for the URL has not returned yet"),
            _ => None,
        }
    }

    /// The server and the credentials.
    pub(crate) async fn ask(&self) -> Result<Server, ProviderError> {
        let answer = match self.options.environment || self.may_change() {
            true => self.ask_on_thread().await,
            false => self.options.ask().map(Arc::new),
        };
        let other = "the URL is now that of another kind of database";
        match &*answer? {
            #[cfg(feature = "postgres")]
            Target::Postgres(server) => Ok(server.clone()),
            #[cfg(feature = "mysql")]
            Target::Mysql(server) => Ok(server.clone()),
            _ => Err(ProviderError::Unusable(other.into())),
        }
    }

    /// Ask on another thread, since the function may hang. At most one thread asks: concurrent
    /// connects wait for the same answer.
    async fn ask_on_thread(&self) -> Answer {
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
                    let options = self.options.clone();
                    let thread = std::thread::Builder::new().name("database-locks-login".into());
                    let started = thread.spawn(move || {
                        done.send_replace(Some(options.ask().map(Arc::new)));
                    });
                    if let Err(error) = started {
                        return Err(ProviderError::new("the password", &error.into()));
                    }
                    *under_way = Some(answer.clone());
                    answer
                }
            }
        };
        let done = tokio::time::timeout(TIMEOUT, answer.wait_for(Option::is_some)).await;
        match done {
            Ok(Ok(message)) => message.clone().unwrap_or_else(panicked),
            Ok(Err(_)) => panicked(),
            Err(_) => {
                let message = format!("no answer within {}", Human(TIMEOUT));
                Err(ProviderError::new("the password", &message.into()))
            }
        }
    }
}

fn panicked() -> Answer {
    Err(ProviderError::new(
        "the password",
        &"the function for it panicked".into(),
    ))
}
