//! The TLS configuration of a connection: its certificates, read and checked.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::options::{Check, Encrypt, Roots, TlsOptions};
use crate::error::Error;
use crate::store::connect::invalid::invalid;

/// The TLS configuration of a connection.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) encrypt: Encrypt,
    pub(crate) check: Check,
    /// Empty if the certificate of the server is not checked.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The client certificate, if the URL names one.
    pub(crate) identity: Option<Identity>,
}

/// A client certificate with its intermediate certificates and its key. Has no `Debug`, since the
/// key is secret.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<PrivateKeyDer<'static>>,
    /// The contents of both files.
    pub(crate) pem: (Vec<u8>, Vec<u8>),
}

impl Identity {
    /// Read both files, before connecting. Errors do not contain their contents.
    fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let invalid = |option: &str, path: &Path, why: &str, allowed: &str| {
            let got = format!(
                "has an {option} that cannot be used: {}: {why}",
                path.display()
            );
            Error::config("url", got, allowed)
        };
        let allowed = "name a file with our certificate in PEM, and those up to the CA behind it";
        let bad = |why: &str| invalid("sslcert", certificate, why, allowed);
        let pem = std::fs::read(certificate).map_err(|error| bad(&error.to_string()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|_| bad("it is no PEM"))?;
        if chain.is_empty() {
            return Err(bad("there is no certificate in it"));
        }

        let allowed = "name a file with the key to the certificate in PEM, not encrypted, that \
                       no other user can read";
        let bad = |why: &str| invalid("sslkey", key, why, allowed);
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
        CertifiedKey::from_der(chain.clone(), parsed.clone_key(), &provider).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(_) => bad("it is not the key to that certificate"),
                rustls::Error::InvalidCertificate(_) => invalid(
                    "sslcert",
                    certificate,
                    "it is no certificate that can be understood",
                    "name a certificate of X.509 version 3",
                ),
                _ => bad("it is of no kind that can be used (RSA, ECDSA P-256 or P-384, Ed25519)"),
            }
        })?;
        Ok(Self {
            chain,
            key: Arc::new(parsed),
            pem: (pem, text),
        })
    }
}

/// As with libpq, a key must not be readable by others. A key that root owns may be readable by a
/// group, by which services share one.
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
    /// Read the certificates, before connecting.
    pub(crate) fn new(options: &TlsOptions) -> Result<Self, Error> {
        let (encrypt, check, roots) = options.resolve()?;
        let roots = match roots {
            None => Vec::new(),
            Some(Roots::System) => of_this_machine()?,
            Some(Roots::File(path)) => in_file(&path)?,
        };
        let identity = match (&options.certificate, &options.key) {
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

const FILE: &str = "name a file with certificates in PEM (-----BEGIN CERTIFICATE-----), or system";

fn in_file(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |why: String| {
        let got = format!(
            "has an sslrootcert that cannot be used: {}: {why}",
            path.display()
        );
        Error::config("url", got, FILE)
    };
    let text = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| invalid(error.to_string()))?;
    if found.is_empty() {
        return Err(invalid("there is no certificate in it".into()));
    }
    let mut store = RootCertStore::empty();
    for certificate in &found {
        let added = store.add(certificate.clone());
        added.map_err(|error| invalid(error.to_string()))?;
    }
    Ok(found)
}

/// Not the built-in list (`webpki-roots`): the CA of a database is often a company's own, which is
/// installed on its machines.
fn of_this_machine() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!("a root certificate of this machine cannot be read: {error}");
    }
    let mut store = RootCertStore::empty();
    let mut usable = found.certs;
    // Certificates that cannot be parsed are left out.
    usable.retain(|certificate| store.add(certificate.clone()).is_ok());
    if usable.is_empty() {
        let got = "has TLS to be checked on a machine without root certificates";
        let allowed = "give the CA's certificate with sslrootcert=/path/to/ca.pem, or the machine \
                       its roots (on Debian: the package ca-certificates)";
        return invalid(got, allowed);
    }
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let message = in_file(&path).unwrap_err().to_string();
            assert!(
                message.contains("ca.pem") && message.contains(why),
                "{message}"
            );
        }
    }
}
