//! Errors of TLS in plain words.

use std::io;

use rustls::CertificateError;

/// An error of TLS, with a hint.
#[derive(Debug)]
pub(crate) struct TlsFailure {
    /// The text after "HOST: ".
    pub(crate) message: String,
    pub(crate) hint: &'static str,
    /// Whether the server refused the client certificate. In TLS 1.3 it does so after the
    /// handshake.
    pub(crate) client_certificate: bool,
}

impl TlsFailure {
    /// The server offers no TLS, and it is required.
    pub(crate) fn none_offered() -> Self {
        Self {
            message: "the server offers no TLS".into(),
            hint: "switch TLS on in the server, or do without: sslmode=disable",
            client_certificate: false,
        }
    }
}

/// The TLS error within an error of a driver, if there is one.
pub(crate) fn tls_failure(error: &(dyn std::error::Error + 'static)) -> Option<TlsFailure> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The source of an I/O error is the source of the error that it wraps.
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

fn explain(error: &rustls::Error) -> TlsFailure {
    use CertificateError as Bad;
    use rustls::AlertDescription as Alert;
    // Alerts of a server that has rejected the client certificate, or that requires one.
    let client_certificate = match error {
        rustls::Error::AlertReceived(Alert::CertificateRequired) => "wants a client certificate",
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
    let tls_failure = |message: String, hint| TlsFailure {
        message,
        hint,
        client_certificate: !client_certificate.is_empty(),
    };
    if !client_certificate.is_empty() {
        let hint = "give one that its CA has issued: sslcert=/path/to/cert.pem and \
                    sslkey=/path/to/key.pem";
        return tls_failure(format!("the server {client_certificate} ({error})"), hint);
    }
    let rustls::Error::InvalidCertificate(bad) = error else {
        let hint = "the server has to offer TLS 1.2 or 1.3; sslmode=disable does without";
        return tls_failure(format!("TLS failed: {error}"), hint);
    };
    let (message, hint) = match bad {
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
        // By the debug text, since rustls does not export the types of webpki.
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
    tls_failure(message, hint)
}

/// `DnsName("db.example")` or `IpAddress(127.0.0.1)`, as webpki shows a name, without the rest.
fn plain(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_the_users_words() {
        let bad = |bad| tls_failure(&io::Error::other(rustls::Error::InvalidCertificate(bad)));
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
            name.message,
            "its TLS certificate is for db.example, 10.0.0.1, not for 127.0.0.1"
        );
        assert!(tls_failure(&io::Error::other("no route")).is_none());
    }
}
