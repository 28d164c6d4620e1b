//! The options by which a program names its database.

use std::fmt;
use std::sync::Arc;

use super::url::{Environment, ResolveError, Target, process_variable, resolve};
use crate::error::{BoxError, Error};

/// A function of the program that returns a secret. It may block.
pub(crate) type SecretSource = Arc<dyn Fn() -> Result<String, BoxError> + Send + Sync>;

/// The options by which a program names its database.
#[derive(Clone)]
pub(crate) struct ConnectOptions {
    /// May contain a password.
    pub(crate) url: String,
    /// Called for the URL, instead of `url`.
    pub(crate) ask_url: Option<SecretSource>,
    /// Called for the password if the URL has none.
    pub(crate) ask_password: Option<SecretSource>,
    /// Whether missing parts of the URL are looked up in the environment and the home folder.
    pub(crate) environment: bool,
    /// SQLite: whether a missing file is created.
    pub(crate) create: bool,
}

/// Leaves out the URL, which may contain a password.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("environment", &self.environment)
            .field("create", &self.create)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    pub(crate) fn url(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ask_url: None,
            ask_password: None,
            environment: true,
            create: true,
        }
    }

    /// The engine and its server or file. No function of the program is called.
    pub(crate) fn target(&self) -> Result<Target, Error> {
        match resolve(&self.url, &self.environment_of_process(), None) {
            Ok(target) => Ok(target),
            Err(ResolveError::Config(error)) => Err(error),
            Err(ResolveError::Password(_)) => unreachable!("it is not asked for"),
        }
    }

    pub(super) fn environment_of_process(&self) -> Environment<'static> {
        Environment::new(&process_variable, self.environment)
    }
}
