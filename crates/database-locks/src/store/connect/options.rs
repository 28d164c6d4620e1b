//! What a program says of its database.

use std::fmt;
use std::sync::Arc;

use super::url::{Environment, ResolveError, Target, process_variable, resolve};
use crate::error::{BoxError, Error};

/// A function of the program's that returns a secret. It may block.
pub(crate) type SecretSource = Arc<dyn Fn() -> Result<String, BoxError> + Send + Sync>;

/// What a program says of its database.
#[derive(Clone)]
pub(crate) struct ConnectOptions {
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

    /// Where the database is. No function of the program's is called.
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
