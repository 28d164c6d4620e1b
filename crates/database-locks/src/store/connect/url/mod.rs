//! From a URL to an engine.
//!
//! Parsed here and not by the drivers: they support different options, and their messages repeat
//! what they could not parse, which may be a password.

use crate::error::{BoxError, Error};

mod dialect;
mod environment;
mod hosts;
mod libpq;
mod option_file;
mod partial;
mod scheme;
mod server;
mod settings;
#[cfg(test)]
mod tests;

use dialect::{MYSQL, POSTGRES};
pub(crate) use environment::{Environment, process_variable};
use partial::PartialServer;
pub(crate) use scheme::Target;
use scheme::{Parsed, parse_scheme};
#[cfg(feature = "postgres")]
pub(crate) use server::Binding;
pub(crate) use server::{Address, Server};

/// The target of a URL, with nothing filled in.
#[cfg(test)]
pub(crate) fn parse(url: &str) -> Result<Target, Error> {
    match parse_scheme(url)? {
        Parsed::Local(target) => Ok(target),
        Parsed::Postgres(partial) => Ok(Target::Postgres(partial.finish(&POSTGRES)?)),
        Parsed::Mysql(partial) => Ok(Target::Mysql(partial.finish(&MYSQL)?)),
    }
}

/// A function for the password, called if the URL has none.
pub(crate) type PasswordFn<'a> = &'a dyn Fn() -> Result<String, BoxError>;

/// Why missing parts of a URL could not be filled in.
#[derive(Debug)]
pub(crate) enum ResolveError {
    /// An option cannot be used.
    Config(Error),
    /// The function for the password failed.
    Password(BoxError),
}

impl From<Error> for ResolveError {
    fn from(error: Error) -> Self {
        Self::Config(error)
    }
}

/// The target of a URL. Missing parts are looked up as the clients of that server do.
///
/// The URL comes first, then, for the password, the function. Then for PostgreSQL the service, the
/// environment and the password file; for MySQL the option file and `MYSQL_PWD`.
pub(crate) fn resolve(
    url: &str,
    environment: &Environment<'_>,
    password: Option<PasswordFn<'_>>,
) -> Result<Target, ResolveError> {
    let ask = |partial: &mut PartialServer| {
        let server = &mut partial.server;
        if let (None, Some(ask)) = (&server.password, password) {
            server.password = Some(ask().map_err(ResolveError::Password)?);
        }
        Ok::<_, ResolveError>(())
    };
    match parse_scheme(url)? {
        Parsed::Local(target) => Ok(target),
        Parsed::Postgres(mut partial) => {
            // As with libpq, an empty one counts as none.
            partial
                .server
                .password
                .take_if(|password| password.is_empty());
            ask(&mut partial)?;
            let service = partial
                .service
                .take()
                .or_else(|| environment.variable("PGSERVICE"));
            if let Some(service) = service {
                partial.fill(libpq::service(&service, environment)?.of_file());
            }
            let variables = libpq::environment(&partial, environment)?;
            partial.fill(variables);
            let mut server = partial.finish(&POSTGRES)?;
            // The user of the process, as in the driver: lines of the password file contain users.
            #[cfg(feature = "postgres")]
            if server.user.is_none() {
                server.user = whoami::username().ok();
            }
            libpq::passwords(&mut server, environment);
            server.check_passwords()?;
            Ok(Target::Postgres(server))
        }
        Parsed::Mysql(mut partial) => {
            ask(&mut partial)?;
            let options = option_file::options(&partial, environment)?;
            partial.fill(options);
            let server = partial.finish(&MYSQL)?;
            server.check_passwords()?;
            Ok(Target::Mysql(server))
        }
    }
}
