//! The programs that a cluster needs, as far as this machine has them.

use std::path::PathBuf;

use crate::faketime;
use crate::programs::find_binary;

/// Where packages put Galera's library.
const PROVIDERS: [&str; 4] = [
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib/galera-4/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
    "/usr/lib/libgalera_smm.so",
];

/// What a cluster is started with.
pub(crate) struct Programs {
    pub(crate) mariadbd: PathBuf,
    pub(crate) provider: PathBuf,
    /// None where no node has a clock of its own.
    pub(crate) faketime: Option<PathBuf>,
}

fn provider() -> Option<PathBuf> {
    let mut paths = PROVIDERS.iter().map(PathBuf::from);
    paths.find(|path| path.is_file())
}

pub(crate) fn found(clocks: bool) -> Option<Programs> {
    let faketime = match clocks {
        true => Some(faketime::library()?),
        false => None,
    };
    // By it a node that was away gets the data.
    find_binary("rsync", &[])?;
    Some(Programs {
        mariadbd: find_binary("mariadbd", &[])?,
        provider: provider()?,
        faketime,
    })
}

pub(crate) fn missing(clocks: bool) -> &'static str {
    if find_binary("mariadbd", &[]).is_none() {
        "mariadbd"
    } else if provider().is_none() {
        "libgalera_smm.so"
    } else if find_binary("rsync", &[]).is_none() {
        "rsync"
    } else if clocks && faketime::library().is_none() {
        "libfaketimeMT.so.1"
    } else {
        "galera"
    }
}
