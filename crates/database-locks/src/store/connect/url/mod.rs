//! From a URL to an engine.
//!
//! Parsed here rather than by the drivers: each of them knows other options, and their messages
//! repeat what they could not read, a password included.

use crate::error::{BoxError, Error};

mod dialect;
mod draft;
mod hosts;
mod libpq;
mod option_file;
#[cfg(test)]
mod precedence;
mod refusal;
mod scheme;
mod server;
mod settings;
mod surroundings;

use dialect::{MYSQL, POSTGRES};
use draft::Draft;
pub(crate) use scheme::Target;
use scheme::{Parsed, split};
#[cfg(feature = "postgres")]
pub(crate) use server::Binding;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use server::{Address, Server};
pub(crate) use surroundings::{Surroundings, of_process};

/// What a URL says, with nothing filled in.
#[cfg(test)]
pub(crate) fn parse(url: &str) -> Result<Target, Error> {
    match split(url)? {
        Parsed::Here(target) => Ok(target),
        Parsed::Postgres(draft) => Ok(Target::Postgres(draft.finish(&POSTGRES)?)),
        Parsed::Mysql(draft) => Ok(Target::Mysql(draft.finish(&MYSQL)?)),
    }
}

/// A source of the password, for where the URL has none.
pub(crate) type AskPassword<'a> = &'a dyn Fn() -> Result<String, BoxError>;

/// Why what a URL leaves out is not known.
#[derive(Debug)]
pub(crate) enum Unresolved {
    /// It cannot be used.
    Config(Error),
    /// The source of the password failed.
    Password(BoxError),
}

impl From<Error> for Unresolved {
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
    around: &Surroundings<'_>,
    password: Option<AskPassword<'_>>,
) -> Result<Target, Unresolved> {
    let ask = |draft: &mut Draft| {
        if let (None, Some(ask)) = (&draft.password, password) {
            draft.password = Some(ask().map_err(Unresolved::Password)?);
        }
        Ok::<_, Unresolved>(())
    };
    match split(url)? {
        Parsed::Here(target) => Ok(target),
        Parsed::Postgres(mut draft) => {
            // To libpq an empty one is none.
            draft.password = draft.password.filter(|password| !password.is_empty());
            ask(&mut draft)?;
            let service = draft
                .service
                .take()
                .or_else(|| around.variable("PGSERVICE"));
            if let Some(service) = service {
                draft.fill(libpq::service(&service, around)?.of_file());
            }
            let environment = libpq::environment(&draft, around)?;
            draft.fill(environment);
            let mut server = draft.finish(&POSTGRES)?;
            // The user of the process, as the driver has it: lines of the file of passwords name
            // users.
            #[cfg(feature = "postgres")]
            if server.user.is_none() {
                server.user = whoami::username().ok();
            }
            libpq::passwords(&mut server, around);
            server.check_passwords()?;
            Ok(Target::Postgres(server))
        }
        Parsed::Mysql(mut draft) => {
            ask(&mut draft)?;
            let options = option_file::options(&draft, around)?;
            draft.fill(options);
            let server = draft.finish(&MYSQL)?;
            server.check_passwords()?;
            Ok(Target::Mysql(server))
        }
    }
}
