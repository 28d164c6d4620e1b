//! The TLS options of a URL.

use std::path::PathBuf;

use crate::error::Error;
use crate::store::connect::invalid::invalid;

/// The protection of a connection, with the names of libpq and of MySQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Disable,
    /// TLS if the server offers it. `allow` has the same effect, since it would begin without TLS.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    /// The error does not contain the value, which may be a secret.
    pub(crate) fn of(option: &str, value: &str) -> Result<Self, Error> {
        Ok(match &*value.to_ascii_lowercase().replace('_', "-") {
            "disable" | "disabled" => Self::Disable,
            "allow" | "prefer" | "preferred" => Self::Prefer,
            "require" | "required" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" | "verify-identity" => Self::VerifyFull,
            _ => {
                let allowed = "it can be disable, prefer, require, verify-ca or verify-full, or in \
                               MySQL's words DISABLED, PREFERRED, REQUIRED, VERIFY_CA or \
                               VERIFY_IDENTITY";
                return invalid(format!("has an unknown `{option}`"), allowed);
            }
        })
    }
}

/// The trusted certificate authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// The roots of this machine.
    System,
    /// A file in PEM.
    File(PathBuf),
}

impl Roots {
    pub(crate) fn of(option: &str, value: &str) -> Result<Self, Error> {
        match value {
            "system" => Ok(Self::System),
            "" => {
                let allowed = "name a file with certificates in PEM, or system";
                invalid(format!("has an empty `{option}`"), allowed)
            }
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The TLS options of a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) mode: Option<Mode>,
    pub(crate) roots: Option<Roots>,
    /// The client certificate and its key, for servers that require one.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// The file in an option.
pub(crate) fn file_of(option: &str, value: String) -> Result<PathBuf, Error> {
    if value.is_empty() {
        let got = format!("has an empty `{option}`");
        return invalid(got, "name a file in PEM");
    }
    Ok(value.into())
}

/// Whether to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encrypt {
    Never,
    IfOffered,
    Always,
}

/// The required check of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Nothing,
    /// It is issued by one of the roots.
    Chain,
    /// It is also issued for the requested host.
    ChainAndName,
}

impl TlsOptions {
    /// Fill in missing options. With `sslmode=disable` none is filled in. Certificate and key are
    /// filled in together.
    pub(crate) fn fill(&mut self, from: Self) {
        if self.mode == Some(Mode::Disable) {
            return;
        }
        self.mode = self.mode.or(from.mode);
        if self.mode == Some(Mode::Disable) {
            return;
        }
        self.roots = self.roots.take().or(from.roots);
        if self.certificate.is_none() && self.key.is_none() {
            (self.certificate, self.key) = (from.certificate, from.key);
        }
    }

    /// Check that the options fit together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let (got, allowed) = match (&self.certificate, &self.key) {
            (None, None) => return Ok(()),
            (Some(_), None) => (
                "has an sslcert and no sslkey",
                "give sslkey=/path/to/key.pem as well",
            ),
            (None, Some(_)) => (
                "has an sslkey and no sslcert",
                "give sslcert=/path/to/cert.pem as well",
            ),
            // The certificate would not be sent.
            _ if self.mode == Some(Mode::Disable) => (
                "has a client certificate and sslmode=disable",
                "give either; sslmode=verify-full, require or prefer go with a certificate",
            ),
            _ => return Ok(()),
        };
        invalid(got, allowed)
    }

    /// The effective settings, and the roots that are needed.
    ///
    /// As with libpq, a given root certificate is used in every mode, though `prefer` and `require`
    /// alone check nothing. Without a mode it means `verify-ca`, as with MySQL's `--ssl-ca`, and
    /// `system` means `verify-full`, as with libpq.
    pub(super) fn resolve(&self) -> Result<(Encrypt, Check, Option<Roots>), Error> {
        let roots = self.roots.clone();
        let checked = || {
            if roots.is_some() {
                Check::Chain
            } else {
                Check::Nothing
            }
        };
        let weak = matches!(self.mode, Some(Mode::Prefer | Mode::Require));
        if weak && roots == Some(Roots::System) {
            // Public CAs issue certificates to anyone, so a check without the name is a mistake.
            // libpq refuses it, too.
            let allowed = "beside sslrootcert=system it has to be verify-full (or verify-ca)";
            return invalid("has an `sslmode` that checks no name", allowed);
        }
        let (encrypt, check) = match (self.mode, &roots) {
            (Some(Mode::Disable), _) => return Ok((Encrypt::Never, Check::Nothing, None)),
            (Some(Mode::Prefer), _) | (None, None) => (Encrypt::IfOffered, checked()),
            (Some(Mode::Require), _) => (Encrypt::Always, checked()),
            (Some(Mode::VerifyCa), _) | (None, Some(Roots::File(_))) => {
                (Encrypt::Always, Check::Chain)
            }
            (Some(Mode::VerifyFull), _) | (None, Some(Roots::System)) => {
                (Encrypt::Always, Check::ChainAndName)
            }
        };
        let needed = (check != Check::Nothing).then(|| roots.unwrap_or(Roots::System));
        Ok((encrypt, check, needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_certificate_that_is_given_is_always_used() {
        let resolved = |mode, roots: Option<&str>| {
            let roots = roots.map(|path| Roots::of("sslrootcert", path).unwrap());
            let options = TlsOptions {
                mode,
                roots,
                ..TlsOptions::default()
            };
            options
                .resolve()
                .map(|(encrypt, check, roots)| (encrypt, check, roots.is_some()))
        };
        use {Check::*, Encrypt::*};
        for (mode, roots, expected) in [
            (None, None, (IfOffered, Nothing, false)),
            (None, Some("ca.pem"), (Always, Chain, true)),
            (None, Some("system"), (Always, ChainAndName, true)),
            (Some(Mode::Disable), Some("ca.pem"), (Never, Nothing, false)),
            (Some(Mode::Prefer), None, (IfOffered, Nothing, false)),
            (Some(Mode::Prefer), Some("ca.pem"), (IfOffered, Chain, true)),
            (Some(Mode::Require), None, (Always, Nothing, false)),
            (Some(Mode::Require), Some("ca.pem"), (Always, Chain, true)),
            (Some(Mode::VerifyCa), None, (Always, Chain, true)),
            (
                Some(Mode::VerifyFull),
                Some("ca.pem"),
                (Always, ChainAndName, true),
            ),
        ] {
            assert_eq!(
                resolved(mode, roots).unwrap(),
                expected,
                "{mode:?} {roots:?}"
            );
        }
        assert!(resolved(Some(Mode::Require), Some("system")).is_err());
    }
}
