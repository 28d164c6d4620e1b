//! The TLS options of the driver.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Error;
use crate::store::connect::tls::{Check, Identity, Tls};

/// The connector of the driver for these settings.
pub(crate) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, Error> {
    // Not the default of the process: rustls panics if the program has built in two and chosen
    // none.
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(tls, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &tls.identity {
        None => config.with_no_client_auth(),
        Some(Identity { chain, key, .. }) => config
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| {
                let got = format!("has a client certificate that cannot be used: {error}");
                Error::config("url", got, "give another one with sslcert= and sslkey=")
            })?,
    };
    Ok(MakeRustlsConnect::new(config))
}

fn unusable(error: impl std::fmt::Display) -> Error {
    let got = format!("has root certificates that cannot be used: {error}");
    Error::config("url", got, "give other ones with sslrootcert=")
}

/// Checks a server's certificate as the settings require, and always that the server has its key.
#[derive(Debug)]
struct Verifier {
    check: Check,
    /// `None` if the certificate is not checked.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let webpki = match tls.check {
            Check::Nothing => None,
            Check::Chain | Check::ChainAndName => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(tls.roots.iter().cloned());
                let (roots, provider) = (Arc::new(roots), Arc::clone(provider));
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider);
                Some(verifier.build().map_err(unusable)?)
            }
        };
        Ok(Self {
            check: tls.check,
            webpki,
            provider: Arc::clone(provider),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        let Some(webpki) = &self.webpki else {
            return Ok(ServerCertVerified::assertion());
        };
        match webpki.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Chain => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
