//! TLS: what a URL asks for, the certificates that are trusted, and what went wrong, in words.

use std::path::PathBuf;

use crate::error::Error;

/// How much a connection is protected, in libpq's words and MySQL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Disable,
    /// Where the server offers it. `allow` is taken for the same: it would begin without.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    /// The value is not repeated where it is none of these: it may be anything.
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
                return Err(Error::config(
                    "url",
                    format!("has an unknown `{option}`"),
                    allowed,
                ));
            }
        })
    }
}

/// Who may have issued a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// Whom this machine trusts.
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
                Err(Error::config(
                    "url",
                    format!("has an empty `{option}`"),
                    allowed,
                ))
            }
            path => Ok(Self::File(path.into())),
        }
    }
}

/// What a URL says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) mode: Option<Mode>,
    pub(crate) roots: Option<Roots>,
    /// Who we are, for servers that want to know it by a certificate: the file of ours, and that of
    /// its key.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// The file that an option names.
pub(crate) fn file_of(option: &str, value: String) -> Result<PathBuf, Error> {
    if value.is_empty() {
        let got = format!("has an empty `{option}`");
        return Err(Error::config("url", got, "name a file in PEM"));
    }
    Ok(value.into())
}

/// Whether there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encrypt {
    Never,
    IfOffered,
    Always,
}

/// What of the server's certificate has to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Nothing,
    /// Issued by one of the roots.
    Chain,
    /// … for the host that was asked for.
    ChainAndName,
}

impl Wanted {
    /// Fill in what was left out. With `sslmode=disable` nothing is filled in; certificate and key
    /// belong together.
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

    /// What the options are together.
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
            // It would not be shown to the server, and whoever wrote it counts on that.
            _ if self.mode == Some(Mode::Disable) => (
                "has a client certificate and sslmode=disable",
                "give either; sslmode=verify-full, require or prefer go with a certificate",
            ),
            _ => return Ok(()),
        };
        Err(Error::config("url", got, allowed))
    }

    /// What it comes to, and which roots are needed.
    ///
    /// As with libpq, a root certificate that is given is used in every mode, though `prefer` and
    /// `require` alone check nothing. Given without a mode it means `verify-ca`, as with MySQL's
    /// `--ssl-ca`, and `system` means `verify-full`, as with libpq.
    fn resolve(&self) -> Result<(Encrypt, Check, Option<Roots>), Error> {
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
            // Anybody gets a certificate from some public CA: with the name unchecked, and even the
            // mode not asking for a check, this can only be a mistake. libpq refuses it, too.
            let allowed = "beside sslrootcert=system it has to be verify-full (or verify-ca)";
            return Err(Error::config(
                "url",
                "has an `sslmode` that checks no name",
                allowed,
            ));
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

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use ready::*;

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod ready {
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::sync::Arc;

    use rustls::crypto::ring;
    use rustls::pki_types::pem::{self, PemObject};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::sign::CertifiedKey;
    use rustls::{CertificateError, RootCertStore};

    use super::{Check, Encrypt, Roots, Wanted};
    use crate::error::Error;

    /// TLS, ready to be used.
    #[derive(Clone)]
    pub(crate) struct Tls {
        pub(crate) encrypt: Encrypt,
        pub(crate) check: Check,
        /// Empty where nothing is checked.
        pub(crate) roots: Vec<CertificateDer<'static>>,
        /// Who we are, where the URL says so.
        pub(crate) identity: Option<Identity>,
    }

    /// Our certificate, with those between it and its root, and the key to it. Not to be shown.
    #[derive(Clone)]
    pub(crate) struct Identity {
        pub(crate) chain: Vec<CertificateDer<'static>>,
        pub(crate) key: Arc<PrivateKeyDer<'static>>,
        /// The contents of both files.
        pub(crate) pem: (Vec<u8>, Vec<u8>),
    }

    impl Identity {
        /// Reads both files, once: what is wrong with them is known before any server is asked. What
        /// stands in them is not repeated.
        fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
            let refuse = |option: &str, path: &Path, why: &str, allowed: &str| {
                let got = format!(
                    "has an {option} that cannot be used: {}: {why}",
                    path.display()
                );
                Error::config("url", got, allowed)
            };
            let allowed =
                "name a file with our certificate in PEM, and those up to the CA behind it";
            let bad = |why: &str| refuse("sslcert", certificate, why, allowed);
            let pem = std::fs::read(certificate).map_err(|error| bad(&error.to_string()))?;
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let chain = chain.map_err(|_| bad("it is no PEM"))?;
            if chain.is_empty() {
                return Err(bad("there is no certificate in it"));
            }

            let allowed = "name a file with the key to the certificate in PEM, not encrypted, that \
                           no other user can read";
            let bad = |why: &str| refuse("sslkey", key, why, allowed);
            readable_by_us_alone(key).map_err(|why| bad(&why))?;
            let text = std::fs::read(key).map_err(|error| bad(&error.to_string()))?;
            let parsed = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
                let encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
                bad(match error {
                    _ if encrypted => "it is encrypted",
                    pem::Error::NoItemsFound => "there is no private key in it",
                    _ => "it is no PEM",
                })
            })?;
            let provider = ring::default_provider();
            CertifiedKey::from_der(chain.clone(), parsed.clone_key(), &provider).map_err(
                |error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        bad("it is not the key to that certificate")
                    }
                    rustls::Error::InvalidCertificate(_) => refuse(
                        "sslcert",
                        certificate,
                        "it is no certificate that can be understood",
                        "name a certificate of X.509 version 3",
                    ),
                    _ => bad(
                        "it is of no kind that can be used (RSA, ECDSA P-256 or P-384, Ed25519)",
                    ),
                },
            )?;
            Ok(Self {
                chain,
                key: Arc::new(parsed),
                pem: (pem, text),
            })
        }
    }

    /// As libpq has it: a key that others can read is no secret. One that root owns may be readable by
    /// a group: the system's way to share one between services.
    fn readable_by_us_alone(path: &Path) -> Result<(), String> {
        let found = std::fs::metadata(path).map_err(|error| error.to_string())?;
        let (forbidden, most) = match found.uid() {
            0 => (0o037, "0640"),
            _ => (0o077, "0600"),
        };
        if !found.is_file() {
            return Err("it is no file".into());
        }
        match found.mode() & forbidden {
            0 => Ok(()),
            _ => Err(format!(
                "others can read or change it: its mode is {:04o}, and {most} at most will do \
                 (chmod {most})",
                found.mode() & 0o7777
            )),
        }
    }

    impl Tls {
        /// Reads the root certificates, once: what is wrong with them is known before any server is
        /// asked.
        pub(crate) fn new(wanted: &Wanted) -> Result<Self, Error> {
            let (encrypt, check, roots) = wanted.resolve()?;
            let roots = match roots {
                None => Vec::new(),
                Some(Roots::System) => of_this_machine()?,
                Some(Roots::File(path)) => in_file(&path)?,
            };
            let identity = match (&wanted.certificate, &wanted.key) {
                (Some(certificate), Some(key)) => Some(Identity::read(certificate, key)?),
                _ => None,
            };
            Ok(Self {
                encrypt,
                check,
                roots,
                identity,
            })
        }
    }

    const FILE: &str =
        "name a file with certificates in PEM (-----BEGIN CERTIFICATE-----), or system";

    fn in_file(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Error> {
        let refuse = |why: String| {
            let got = format!(
                "has an sslrootcert that cannot be used: {}: {why}",
                path.display()
            );
            Error::config("url", got, FILE)
        };
        let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let found = found.map_err(|error| refuse(error.to_string()))?;
        if found.is_empty() {
            return Err(refuse("there is no certificate in it".into()));
        }
        let mut store = RootCertStore::empty();
        for certificate in &found {
            let added = store.add(certificate.clone());
            added.map_err(|error| refuse(error.to_string()))?;
        }
        Ok(found)
    }

    /// Not a list that is built in (`webpki-roots`): a database's CA is often a company's own, which
    /// its machines know.
    fn of_this_machine() -> Result<Vec<CertificateDer<'static>>, Error> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("a root certificate of this machine cannot be read: {error}");
        }
        let mut store = RootCertStore::empty();
        let mut usable = found.certs;
        // Old ones that nobody can read are no reason to trust none of them.
        usable.retain(|certificate| store.add(certificate.clone()).is_ok());
        if usable.is_empty() {
            let got = "has TLS to be checked on a machine without root certificates";
            let allowed = "give the CA's certificate with sslrootcert=/path/to/ca.pem, or the machine \
                           its roots (on Debian: the package ca-certificates)";
            return Err(Error::config("url", got, allowed));
        }
        Ok(usable)
    }

    /// What is wrong with TLS, and what to do.
    #[derive(Debug)]
    pub(crate) struct Complaint {
        /// Goes on after "HOST: ".
        pub(crate) said: String,
        pub(crate) hint: &'static str,
        /// It is the server that complains, of our certificate. In TLS 1.3 that comes when the
        /// connection counts as made already.
        pub(crate) of_ours: bool,
    }

    impl Complaint {
        /// The server has no TLS, and it was asked for.
        pub(crate) fn none_offered() -> Self {
            Self {
                said: "the server offers no TLS".into(),
                hint: "switch TLS on in the server, or do without: sslmode=disable",
                of_ours: false,
            }
        }
    }

    /// The TLS error in a driver's, if there is one.
    pub(crate) fn complaint(error: &(dyn std::error::Error + 'static)) -> Option<Complaint> {
        let mut next = Some(error);
        while let Some(error) = next {
            // An I/O error's source is that of what it holds.
            let held = error
                .downcast_ref::<io::Error>()
                .and_then(|error| error.get_ref())
                .and_then(|held| held.downcast_ref::<rustls::Error>());
            if let Some(error) = held.or_else(|| error.downcast_ref()) {
                return Some(explain(error));
            }
            next = error.source();
        }
        None
    }

    fn explain(error: &rustls::Error) -> Complaint {
        use CertificateError as Bad;
        use rustls::AlertDescription as Alert;
        // What a server says that looked at our certificate, or missed it.
        let of_ours = match error {
            rustls::Error::AlertReceived(Alert::CertificateRequired) => {
                "wants a client certificate"
            }
            rustls::Error::AlertReceived(
                Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::AccessDenied,
            ) => "does not accept our client certificate",
            _ => "",
        };
        if !of_ours.is_empty() {
            return Complaint {
                said: format!("the server {of_ours} ({error})"),
                hint: "give one that its CA has issued: sslcert=/path/to/cert.pem and \
                       sslkey=/path/to/key.pem",
                of_ours: true,
            };
        }
        let rustls::Error::InvalidCertificate(bad) = error else {
            return Complaint {
                said: format!("TLS failed: {error}"),
                hint: "the server has to offer TLS 1.2 or 1.3; sslmode=disable does without",
                of_ours: false,
            };
        };
        let (said, hint) = match bad {
            Bad::UnknownIssuer => (
                "its TLS certificate was issued by an unknown CA".into(),
                "give the certificate of that CA: sslrootcert=/path/to/ca.pem",
            ),
            Bad::NotValidForNameContext {
                expected,
                presented,
            } => {
                let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
                let names = match names.is_empty() {
                    true => "no host at all (it has no subjectAltName)".to_owned(),
                    false => names.join(", "),
                };
                (
                    format!(
                        "its TLS certificate is for {names}, not for {}",
                        expected.to_str()
                    ),
                    "use the name that it is for as host, or check the CA alone: sslmode=verify-ca",
                )
            }
            Bad::Expired | Bad::ExpiredContext { .. } => (
                "its TLS certificate has expired".into(),
                "renew it, or set this machine's clock right",
            ),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => (
                "its TLS certificate is not valid yet".into(),
                "set this machine's clock right, or the server's before a certificate is made",
            ),
            // Words of webpki, whose types are nobody's business.
            other if format!("{other:?}").contains("CaUsedAsEndEntity") => (
                "its TLS certificate is that of a CA and not of a server".into(),
                "give the server one that the CA has issued, and sslrootcert= that of the CA",
            ),
            other if format!("{other:?}").contains("UnsupportedCertVersion") => (
                "its TLS certificate is not of X.509 version 3".into(),
                "make a new one with a subjectAltName, or do without TLS: sslmode=disable",
            ),
            other => (
                format!("its TLS certificate is not accepted: {other}"),
                "give the server another one, or check none: sslmode=require without sslrootcert",
            ),
        };
        Complaint {
            said,
            hint,
            of_ours: false,
        }
    }

    /// `DnsName("db.example")` or `IpAddress(127.0.0.1)`, as webpki shows a name, without the rest.
    fn plain(name: &str) -> &str {
        let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
        inner.trim_end_matches(')').trim_matches('"')
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::store::connect::tls::Mode;

        #[test]
        fn an_error_is_told_in_the_users_words() {
            let bad = |bad| complaint(&io::Error::other(rustls::Error::InvalidCertificate(bad)));
            let unknown = bad(CertificateError::UnknownIssuer).expect("an error of TLS");
            assert!(unknown.hint.contains("sslrootcert="), "{unknown:?}");
            let name = bad(CertificateError::NotValidForNameContext {
                expected: "127.0.0.1".try_into().unwrap(),
                presented: vec![
                    "DnsName(\"db.example\")".into(),
                    "IpAddress(10.0.0.1)".into(),
                ],
            });
            let name = name.expect("an error of TLS");
            assert_eq!(
                name.said,
                "its TLS certificate is for db.example, 10.0.0.1, not for 127.0.0.1"
            );
            assert!(complaint(&io::Error::other("no route")).is_none());
        }

        #[test]
        fn a_root_certificate_that_is_given_is_always_used() {
            let resolved = |mode, roots: Option<&str>| {
                let roots = roots.map(|path| Roots::of("sslrootcert", path).unwrap());
                let wanted = Wanted {
                    mode,
                    roots,
                    ..Wanted::default()
                };
                wanted
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

        #[test]
        fn a_bad_file_of_certificates_is_told_with_its_name() {
            for (content, why) in [
                (None, "No such file"),
                (Some(""), "no certificate in it"),
                (
                    Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                    "",
                ),
            ] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("ca.pem");
                if let Some(content) = content {
                    std::fs::write(&path, content).unwrap();
                }
                let said = in_file(&path).unwrap_err().to_string();
                assert!(said.contains("ca.pem") && said.contains(why), "{said}");
            }
        }
    }
}
