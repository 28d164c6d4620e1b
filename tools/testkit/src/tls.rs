//! Certificates made for a test, and files of them.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use std::path::{Path, PathBuf};

use crate::cleanup::ScratchDir;

/// A private CA in a directory of its own.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: ScratchDir,
}

/// A certificate of a server or a user and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// That of its issuer, of whose other certificates a server takes those of users.
    pub(crate) issuer: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    ///
    /// If there is no randomness or no temporary directory.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        let dir = ScratchDir::new("ca");
        std::fs::write(dir.join("ca.pem"), &pem).expect("the directory can be written to");
        Self {
            issuer: Issuer::new(params, key),
            pem,
            dir,
        }
    }

    /// The file of its own certificate, for `sslrootcert`.
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for servers of these names and addresses.
    ///
    /// # Panics
    ///
    /// If one of them is none.
    pub fn certify(&self, names: &[&str]) -> Certificate {
        self.sign(names, "a server")
    }

    /// A certificate for a user of that name.
    ///
    /// # Panics
    ///
    /// If there is no randomness.
    pub fn certify_user(&self, name: &str) -> Certificate {
        self.sign(&[], name)
    }

    fn sign(&self, names: &[&str], subject: &str) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names of hosts");
        params.distinguished_name.push(DnType::CommonName, subject);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("the CA signs");
        Certificate {
            issuer: self.pem.clone(),
            chain: format!("{}{}", certificate.pem(), self.pem),
            key: key.serialize_pem(),
        }
    }
}

impl Certificate {
    /// Writes both into files that only the current user can read, for `sslcert` and `sslkey`.
    ///
    /// # Panics
    ///
    /// If the directory cannot be written to.
    pub fn save(&self, dir: &Path) -> [PathBuf; 2] {
        self.write(dir, |_| ());
        ["cert.pem", "key.pem"].map(|name| dir.join(name))
    }

    /// Writes both into a server's directory. Only the server may read the key, or it will not have
    /// it.
    pub(crate) fn write(&self, dir: &Path, give: impl Fn(&Path)) {
        use std::os::unix::fs::PermissionsExt;
        let files = [
            ("ca.pem", &self.issuer),
            ("cert.pem", &self.chain),
            ("key.pem", &self.key),
        ];
        for (name, pem) in files {
            let path = dir.join(name);
            std::fs::write(&path, pem).expect("the directory can be written to");
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, private).expect("the file can be changed");
            give(&path);
        }
    }
}
