//! From a URL to an engine.
//!
//! Parsed here rather than by the drivers: each of them knows other options, and their messages
//! repeat what they could not read, a password included.

use crate::error::{BoxError, Error};

mod dialect;
mod environment;
mod hosts;
mod invalid;
mod libpq;
mod option_file;
mod partial;
#[cfg(test)]
mod precedence;
mod scheme;
mod server;
mod settings;

use dialect::{MYSQL, POSTGRES};
pub(crate) use environment::{Environment, process_variable};
use partial::PartialServer;
pub(crate) use scheme::Target;
use scheme::{Parsed, parse_scheme};
#[cfg(feature = "postgres")]
pub(crate) use server::Binding;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use server::{Address, Server};

/// What a URL says, with nothing filled in.
#[cfg(test)]
pub(crate) fn parse(url: &str) -> Result<Target, Error> {
    match parse_scheme(url)? {
        Parsed::Local(target) => Ok(target),
        Parsed::Postgres(partial) => Ok(Target::Postgres(partial.finish(&POSTGRES)?)),
        Parsed::Mysql(partial) => Ok(Target::Mysql(partial.finish(&MYSQL)?)),
    }
}

/// A source of the password, for where the URL has none.
pub(crate) type PasswordFn<'a> = &'a dyn Fn() -> Result<String, BoxError>;

/// Why what a URL leaves out is not known.
#[derive(Debug)]
pub(crate) enum ResolveError {
    /// It cannot be used.
    Config(Error),
    /// The source of the password failed.
    Password(BoxError),
}

impl From<Error> for ResolveError {
    fn from(error: Error) -> Self {
        Self::Config(error)
    }
}

/// What a URL says, and what it leaves out as the drivers of that server look it up.
///
/// First comes the URL, for the password then the function; PostgreSQL: the service, the
/// environment, the file of passwords; MySQL: the option file, then `MYSQL_PWD`.
pub(crate) fn resolve(
    url: &str,
    environment: &Environment<'_>,
    password: Option<PasswordFn<'_>>,
) -> Result<Target, ResolveError> {
    let ask = |partial: &mut PartialServer| {
        if let (None, Some(ask)) = (&partial.password, password) {
            partial.password = Some(ask().map_err(ResolveError::Password)?);
        }
        Ok::<_, ResolveError>(())
    };
    match parse_scheme(url)? {
        Parsed::Local(target) => Ok(target),
        Parsed::Postgres(mut partial) => {
            // To libpq an empty one is none.
            partial.password = partial.password.filter(|password| !password.is_empty());
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
            // The user of the process, as the driver has it: lines of the file of passwords name
            // users.
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
